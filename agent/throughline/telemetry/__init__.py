"""OpenTelemetry spans and metrics of what the kernel has recorded."""
