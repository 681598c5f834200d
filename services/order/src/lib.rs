//! Order Service: the order's life, its driver, inventory.
