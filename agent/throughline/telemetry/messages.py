"""The parts that the OTLP messages of both signals share: attributes, resource, scope, bytes."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import Message
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from throughline import __version__
from throughline.services.naming import Service
from throughline.text import utf8

SCOPE = InstrumentationScope(name="throughline", version=__version__)


def attribute(key: str, value: str | int) -> KeyValue:
    """Raises TypeError or ValueError for a value that no attribute can have."""
    message = KeyValue(key=key)
    if isinstance(value, str):
        message.value.string_value = value
    else:
        message.value.int_value = value
    return message


def attributes(values: Mapping[str, str | int]) -> list[KeyValue]:
    return [attribute(key, value) for key, value in values.items()]


def resource(service: Service) -> Resource:
    """The OpenTelemetry resource of a service. An operator's attributes may have any name."""
    return Resource(
        attributes=[
            attribute(utf8(key), utf8(value)) for key, value in service.attributes.items() if key
        ]
    )


def encode(message: Message) -> bytes:
    """The bytes of a message. Raises an exception for a text that is not UTF-8."""
    encoded: bytes = message.SerializeToString()
    return encoded
