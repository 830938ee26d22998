// An OpenTelemetry SDK that traces node:http, and sends no header: it would be the parent itself.
const { registerInstrumentations } = require('@opentelemetry/instrumentation');
const { HttpInstrumentation } = require('@opentelemetry/instrumentation-http');
const { NodeTracerProvider } = require('@opentelemetry/sdk-trace-node');

new NodeTracerProvider().register({ propagator: null });
registerInstrumentations({ instrumentations: [new HttpInstrumentation()] });
