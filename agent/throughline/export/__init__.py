"""From finished spans to the Collector: queue, spool, encoding, transport."""
