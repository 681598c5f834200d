package main // an order from log-in to events, a declined payment, a rejected call, a deadline and a retry: see ../README.md

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	common "ordermesh-client/gen/common/v1"
	data "ordermesh-client/gen/data/v1"
	order "ordermesh-client/gen/order/v1"
	user "ordermesh-client/gen/user/v1"
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func channel(service string) *grpc.ClientConn { // with TLS it verifies the server's certificate, and has none of its own
	security, config := insecure.NewCredentials(), string(must(os.ReadFile("../service-config.json")))
	if ca, ok := os.LookupEnv("CA_FILE"); ok {
		security = must(credentials.NewClientTLSFromFile(ca, ""))
	}
	return must(grpc.NewClient(os.Getenv(service+"_ADDRESS"), grpc.WithTransportCredentials(security), grpc.WithDefaultServiceConfig(config)))
}

func main() {
	ctx, items := context.Background(), []*order.OrderItem{{Sku: "MUG-BLUE", Quantity: 1}}
	address := &common.Address{Recipient: "Ada", Lines: []string{"Chausseestr. 1"}, City: "Berlin", PostalCode: "10115", CountryCode: "DE"}
	ada := &user.LoginRequest{Email: "go-" + uuid.NewString() + "@example.com", Password: "correct horse battery"}
	admin := &user.LoginRequest{Email: os.Getenv("OPERATOR_EMAIL"), Password: os.Getenv("OPERATOR_PASSWORD")}
	users, orders, services := user.NewUserServiceClient(channel("USER")), order.NewOrderServiceClient(channel("ORDER")), channel("DATA")
	token := func(login *user.LoginRequest) string { return must(users.Login(ctx, login)).Session.AccessToken }
	must(users.Register(ctx, &user.RegisterRequest{RequestId: uuid.NewString(), Email: ada.Email, Password: ada.Password, DisplayName: "Ada"}))
	customer := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token(ada))
	operator := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token(admin))
	place := func(method string, timeout time.Duration) (last *order.WatchOrderResponse, err error) {
		ctx, cancel := context.WithTimeout(customer, timeout)
		defer cancel()
		request := &order.CreateOrderRequest{RequestId: uuid.NewString(), Items: items, PaymentMethod: method, ContactEmail: ada.Email, ShippingAddress: address}
		watch := must(orders.WatchOrder(ctx, &order.WatchOrderRequest{OrderId: must(orders.CreateOrder(ctx, request)).Order.OrderId}))
		step, err := watch.Recv()
		for ; err == nil; step, err = watch.Recv() {
			fmt.Println("order:", step.Entry.State)
			last = step
		}
		return last, err // io.EOF after a terminal state
	}
	last, _ := place("pm_card_visa", 30*time.Second)
	request, seen := &data.ListTraceEventsRequest{TraceId: last.Entry.TraceId}, map[string]string{}
	for ; len(seen) < 4; time.Sleep(100 * time.Millisecond) { // they arrive asynchronously
		for _, event := range must(data.NewTraceEventServiceClient(services).ListTraceEvents(operator, request)).Events {
			seen[event.Type.String()] = event.Status.String()
		}
	}
	fmt.Println("events:", seen)
	last, _ = place("pm_card_visa_chargeDeclinedInsufficientFunds", 30*time.Second)
	fmt.Println("declined:", last.PaymentFailure.Reason, last.PaymentFailure.DeclineCode)
	_, err := users.Login(ctx, &user.LoginRequest{Email: ada.Email, Password: "wrong " + ada.Password})
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			fmt.Println("rejected:", status.Code(err), info.Reason)
		}
	}
	_, err = place("pm_gateway_slow", 2*time.Second)
	fmt.Println("deadline:", status.Code(err))
	for range 15 {
		fmt.Println("found:", len(must(data.NewCatalogServiceClient(services).ListProducts(ctx, &data.ListProductsRequest{Text: "mug"})).Products))
	}
}
