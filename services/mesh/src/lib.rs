//! The service mesh as tower layers: one server stack, one client stack. Knows nothing of orders.
