/** An order from log-in to events, a declined payment, a rejected call, a deadline and a retry: see ../README.md. */
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout } from "node:timers/promises";
import { type CallOptions, credentials, Metadata, type ServiceError, status } from "@grpc/grpc-js";
import { ErrorInfo } from "nice-grpc-error-details";
import { Status } from "nice-grpc-error-details/lib/proto/google/rpc/status.js";
import { CatalogServiceClient, ListProductsRequest } from "./gen/data/v1/catalog.js";
import { ListTraceEventsRequest, TraceEventServiceClient } from "./gen/data/v1/trace_event.js";
import { CreateOrderRequest, OrderServiceClient, WatchOrderRequest, type WatchOrderResponse } from "./gen/order/v1/order.js";
import { UserServiceClient } from "./gen/user/v1/user.js";

const env = process.env as Record<string, string>; // with TLS it verifies the server's certificate, and has none of its own
const security = env.CA_FILE ? credentials.createSsl(readFileSync(env.CA_FILE)) : credentials.createInsecure();
const options = { "grpc.service_config": readFileSync("../service-config.json", "utf8") };
const users = new UserServiceClient(env.USER_ADDRESS, security, options);
const orders = new OrderServiceClient(env.ORDER_ADDRESS, security, options);
const catalogue = new CatalogServiceClient(env.DATA_ADDRESS, security, options);
const events = new TraceEventServiceClient(env.DATA_ADDRESS, security, options);

type Done<Response> = (error: ServiceError | null, response: Response) => void;
/** A unary method that returns a promise. */
const unary = <Request, Response>(method: (request: Request, metadata: Metadata, options: Partial<CallOptions>, done: Done<Response>) => unknown) =>
  (request: Request, metadata: Metadata, options: Partial<CallOptions>) => new Promise<Response>((resolve, reject) =>
    method(request, metadata, options, (error, response) => error ? reject(error) : resolve(response)));

const [none, email, password] = [new Metadata(), `typescript-${randomUUID()}@example.com`, "correct horse battery"];
const within = (seconds: number) => ({ deadline: Date.now() + seconds * 1000 });

async function login(email: string, password: string) {
  const { session } = await unary(users.login.bind(users))({ email, password }, none, within(10));
  const metadata = new Metadata();
  metadata.set("authorization", `Bearer ${session!.accessToken}`);
  return metadata;
}

/** Orders and watches, until a terminal state or the deadline; returns the last message. */
async function place(paymentMethod: string, seconds: number) {
  const deadline = within(seconds);
  const request = CreateOrderRequest.fromPartial({
    requestId: randomUUID(), items: [{ sku: "MUG-BLUE", quantity: 1 }], paymentMethod, contactEmail: email,
    shippingAddress: { recipient: "Ada", lines: ["Chausseestr. 1"], city: "Berlin", postalCode: "10115", countryCode: "DE" },
  });
  const { order } = await unary(orders.createOrder.bind(orders))(request, customer, deadline);
  let last: WatchOrderResponse | undefined;
  for await (last of orders.watchOrder(WatchOrderRequest.fromPartial({ orderId: order!.orderId }), customer, deadline)) {
    console.log("order:", last!.entry!.state);
  }
  return last!;
}

await unary(users.register.bind(users))({ requestId: randomUUID(), email, password, displayName: "Ada" }, none, within(10));
const customer = await login(email, password);
const operator = await login(env.OPERATOR_EMAIL, env.OPERATOR_PASSWORD);

const { entry } = await place("pm_card_visa", 30);
let seen = new Set<string>();
while (seen.size < 4) { // they arrive asynchronously
  await setTimeout(100);
  const request = ListTraceEventsRequest.fromPartial({ traceId: entry!.traceId });
  const response = await unary(events.listTraceEvents.bind(events))(request, operator, within(5));
  seen = new Set(response.events.map((event) => event.type));
}
console.log("events:", ...seen);

const { paymentFailure } = await place("pm_card_visa_chargeDeclinedInsufficientFunds", 30);
console.log("declined:", paymentFailure!.reason, paymentFailure!.declineCode);

await login(email, `wrong ${password}`).catch((error: ServiceError) => {
  const { details } = Status.decode(error.metadata.get("grpc-status-details-bin")[0] as Buffer);
  const info = details.find((detail) => detail.typeUrl === `type.googleapis.com/${ErrorInfo.$type}`);
  console.log("rejected:", status[error.code], ErrorInfo.decode(info!.value).reason);
});
await place("pm_gateway_slow", 2).catch((error: ServiceError) => console.log("deadline:", status[error.code]));

for (let search = 0; search < 15; search++) {
  const { products } = await unary(catalogue.listProducts.bind(catalogue))(ListProductsRequest.fromPartial({ text: "mug" }), none, within(10));
  console.log("found:", products.length);
}
[users, orders, catalogue, events].forEach((client) => client.close());
