"""An order from log-in to events, a declined payment, a rejected call, a deadline and a retry: see ../README.md."""

import os
import time
import uuid
from pathlib import Path

import grpc
from common.v1.address_pb2 import Address
from common.v1.event_type_pb2 import EventType
from data.v1 import catalog_pb2, catalog_pb2_grpc, trace_event_pb2, trace_event_pb2_grpc
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status
from order.v1 import order_pb2, order_pb2_grpc
from user.v1 import user_pb2, user_pb2_grpc

EMAIL, PASSWORD = f"python-{uuid.uuid4()}@example.com", "correct horse battery"
ADDRESS = Address(recipient="Ada", lines=["Chausseestr. 1"], city="Berlin", postal_code="10115", country_code="DE")


def channel(service):
    """With TLS it verifies the server's certificate, and has none of its own."""
    address, options = os.environ[f"{service}_ADDRESS"], [("grpc.service_config", Path("../service-config.json").read_text())]
    if "CA_FILE" in os.environ:
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(Path(os.environ["CA_FILE"]).read_bytes()), options)
    return grpc.insecure_channel(address, options)


users = user_pb2_grpc.UserServiceStub(channel("USER"))
orders = order_pb2_grpc.OrderServiceStub(channel("ORDER"))
catalogue = catalog_pb2_grpc.CatalogServiceStub(channel("DATA"))
events = trace_event_pb2_grpc.TraceEventServiceStub(channel("DATA"))


def login(email, password):
    """The session's metadata."""
    session = users.Login(user_pb2.LoginRequest(email=email, password=password), timeout=10).session
    return [("authorization", f"Bearer {session.access_token}")]


def place(method, timeout):
    """Orders and watches, until a terminal state or the deadline; returns the last message."""
    request = order_pb2.CreateOrderRequest(
        request_id=str(uuid.uuid4()), items=[order_pb2.OrderItem(sku="MUG-BLUE", quantity=1)],
        payment_method=method, contact_email=EMAIL, shipping_address=ADDRESS)
    order = orders.CreateOrder(request, metadata=customer, timeout=timeout).order
    for step in orders.WatchOrder(order_pb2.WatchOrderRequest(order_id=order.order_id), metadata=customer, timeout=timeout):
        print("order:", order_pb2.OrderState.Name(step.entry.state))
    return step


users.Register(user_pb2.RegisterRequest(request_id=str(uuid.uuid4()), email=EMAIL, password=PASSWORD, display_name="Ada"), timeout=10)
customer, operator = login(EMAIL, PASSWORD), login(os.environ["OPERATOR_EMAIL"], os.environ["OPERATOR_PASSWORD"])

last, seen = place("pm_card_visa", 30), set()
while len(seen) < 4:  # they arrive asynchronously
    time.sleep(0.1)
    response = events.ListTraceEvents(trace_event_pb2.ListTraceEventsRequest(trace_id=last.entry.trace_id), metadata=operator, timeout=5)
    seen = {EventType.Name(event.type) for event in response.events}
print("events:", *seen)

failure = place("pm_card_visa_chargeDeclinedInsufficientFunds", 30).payment_failure
print("declined:", failure.reason, failure.decline_code)

try:
    users.Login(user_pb2.LoginRequest(email=EMAIL, password=f"wrong {PASSWORD}"), timeout=10)
except grpc.RpcError as error:
    for detail in rpc_status.from_call(error).details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            print("rejected:", error.code().name, ErrorInfo.FromString(detail.value).reason)

try:
    place("pm_gateway_slow", 2)
except grpc.RpcError as error:
    print("deadline:", error.code().name)

for _ in range(15):
    print("found:", len(catalogue.ListProducts(catalog_pb2.ListProductsRequest(text="mug"), timeout=10).products))
