// An order from log-in to events, a declined payment, a rejected call, a deadline and a retry: see ../README.md.
import static java.util.concurrent.TimeUnit.SECONDS;
import com.google.gson.Gson;
import com.google.rpc.ErrorInfo;
import common.v1.AddressOuterClass.Address;
import data.v1.*;
import data.v1.Catalog.ListProductsRequest;
import data.v1.TraceEventOuterClass.ListTraceEventsRequest;
import io.grpc.*;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.nio.file.*;
import java.util.*;
import order.v1.OrderOuterClass.*;
import order.v1.OrderServiceGrpc;
import user.v1.User.*;
import user.v1.UserServiceGrpc;

class Client {
  static final String EMAIL = "java-" + id() + "@example.com", PASSWORD = "correct horse battery";
  static UserServiceGrpc.UserServiceBlockingStub users;
  static OrderServiceGrpc.OrderServiceBlockingStub orders;
  static String id() { return UUID.randomUUID().toString(); }

  static ManagedChannel channel(String service) throws Exception { // with TLS it verifies the server's certificate, and has none of its own
    String ca = System.getenv("CA_FILE"), config = Files.readString(Path.of("../service-config.json"));
    var security = ca == null ? InsecureChannelCredentials.create() : TlsChannelCredentials.newBuilder().trustManager(Path.of(ca).toFile()).build();
    return Grpc.newChannelBuilder(System.getenv(service + "_ADDRESS"), security).defaultServiceConfig(new Gson().fromJson(config, Map.class)).build();
  }

  static ClientInterceptor login(String email, String password) { // adds the session's metadata to calls
    var session = users.withDeadlineAfter(10, SECONDS).login(LoginRequest.newBuilder().setEmail(email).setPassword(password).build()).getSession();
    var metadata = new Metadata();
    metadata.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + session.getAccessToken());
    return MetadataUtils.newAttachHeadersInterceptor(metadata);
  }

  static WatchOrderResponse place(String method, int seconds) { // orders and watches, until a terminal state or the deadline; returns the last message
    var stub = orders.withDeadlineAfter(seconds, SECONDS);
    var address = Address.newBuilder().setRecipient("Ada").addLines("Chausseestr. 1").setCity("Berlin").setPostalCode("10115").setCountryCode("DE");
    var order = stub.createOrder(CreateOrderRequest.newBuilder().setRequestId(id()).addItems(OrderItem.newBuilder().setSku("MUG-BLUE").setQuantity(1))
        .setPaymentMethod(method).setContactEmail(EMAIL).setShippingAddress(address).build()).getOrder();
    WatchOrderResponse last = null;
    for (var steps = stub.watchOrder(WatchOrderRequest.newBuilder().setOrderId(order.getOrderId()).build()); steps.hasNext(); ) {
      last = steps.next();
      System.out.println("order: " + last.getEntry().getState());
    }
    return last;
  }

  public static void main(String[] args) throws Exception {
    ManagedChannel user = channel("USER"), order = channel("ORDER"), data = channel("DATA");
    users = UserServiceGrpc.newBlockingStub(user);
    users.withDeadlineAfter(10, SECONDS).register(RegisterRequest.newBuilder().setRequestId(id()).setEmail(EMAIL).setPassword(PASSWORD).setDisplayName("Ada").build());
    orders = OrderServiceGrpc.newBlockingStub(order).withInterceptors(login(EMAIL, PASSWORD));
    var events = TraceEventServiceGrpc.newBlockingStub(data).withInterceptors(login(System.getenv("OPERATOR_EMAIL"), System.getenv("OPERATOR_PASSWORD")));
    var trace = ListTraceEventsRequest.newBuilder().setTraceId(place("pm_card_visa", 30).getEntry().getTraceId()).build();
    var seen = new HashSet<String>();
    for (; seen.size() < 4; Thread.sleep(100)) // they arrive asynchronously
      events.withDeadlineAfter(5, SECONDS).listTraceEvents(trace).getEventsList().forEach(event -> seen.add(event.getType().name()));
    System.out.println("events: " + seen);
    var failure = place("pm_card_visa_chargeDeclinedInsufficientFunds", 30).getPaymentFailure();
    System.out.println("declined: " + failure.getReason() + " " + failure.getDeclineCode());
    try {
      login(EMAIL, "wrong " + PASSWORD);
    } catch (StatusRuntimeException error) {
      for (var detail : StatusProto.fromThrowable(error).getDetailsList())
        if (detail.is(ErrorInfo.class)) System.out.println("rejected: " + error.getStatus().getCode() + " " + detail.unpack(ErrorInfo.class).getReason());
    }
    try {
      place("pm_gateway_slow", 2);
    } catch (StatusRuntimeException error) {
      System.out.println("deadline: " + error.getStatus().getCode());
    }
    var search = ListProductsRequest.newBuilder().setText("mug").build();
    for (int i = 0; i < 15; i++)
      System.out.println("found: " + CatalogServiceGrpc.newBlockingStub(data).withDeadlineAfter(10, SECONDS).listProducts(search).getProductsCount());
    for (var channel : List.of(user, order, data)) channel.shutdown();
  }
}
