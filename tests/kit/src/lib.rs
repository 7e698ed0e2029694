//! Real PostgreSQL clusters and relays for tests, benches and the demo.
