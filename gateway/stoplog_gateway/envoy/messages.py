"""The messages of Envoy's RateLimitService v3 that Stoplog reads and writes.

They are defined here because the package ``xds-protos`` overwrites ``opentelemetry.proto`` and ``google.rpc``
with older copies than tracing needs. Field numbers and types are Envoy's
(``envoy/service/ratelimit/v3/rls.proto``, ``envoy/extensions/common/ratelimit/v3/ratelimit.proto``). The
protobuf package has a name of its own, so that a program can load Envoy's definitions too.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, message_factory, wrappers_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

SERVICE: Final = "envoy.service.ratelimit.v3.RateLimitService"
METHOD: Final = "ShouldRateLimit"

OK: Final = 1
OVER_LIMIT: Final = 2

MAX_UINT32: Final = 2**32 - 1

_PACKAGE: Final = "stoplog.envoy"
_ENUMS: Final = {
    "Code": {"NONE": 0, "OK": 1, "OVER_LIMIT": 2},
    "Unit": {
        "UNKNOWN": 0,
        "SECOND": 1,
        "MINUTE": 2,
        "HOUR": 3,
        "DAY": 4,
        "MONTH": 5,
        "YEAR": 6,
        "WEEK": 7,
    },
}
_MESSAGES: Final[dict[str, list[tuple[str, int, int | str, bool]]]] = {
    # name, number, type, repeated
    "RateLimitRequest": [
        ("domain", 1, Field.TYPE_STRING, False),
        ("descriptors", 2, "RateLimitDescriptor", True),
        ("hits_addend", 3, Field.TYPE_UINT32, False),
    ],
    "RateLimitDescriptor": [
        ("entries", 1, "Entry", True),
        ("limit", 2, "RateLimit", False),
        ("hits_addend", 3, "google.protobuf.UInt64Value", False),
        ("is_negative_hits", 4, Field.TYPE_BOOL, False),
    ],
    "Entry": [("key", 1, Field.TYPE_STRING, False), ("value", 2, Field.TYPE_STRING, False)],
    "RateLimit": [("requests_per_unit", 1, Field.TYPE_UINT32, False), ("unit", 2, "Unit", False)],
    "RateLimitResponse": [
        ("overall_code", 1, "Code", False),
        ("statuses", 2, "DescriptorStatus", True),
        ("response_headers_to_add", 3, "HeaderValue", True),
    ],
    "DescriptorStatus": [
        ("code", 1, "Code", False),
        ("current_limit", 2, "RateLimit", False),
        ("limit_remaining", 3, Field.TYPE_UINT32, False),
        ("duration_until_reset", 4, "google.protobuf.Duration", False),
    ],
    "HeaderValue": [("key", 1, Field.TYPE_STRING, False), ("value", 2, Field.TYPE_STRING, False)],
    # grpc/health/v1/health.proto. An enum and an int32 have the same encoding.
    "HealthCheckRequest": [("service", 1, Field.TYPE_STRING, False)],
    "HealthCheckResponse": [("status", 1, Field.TYPE_INT32, False)],
}


def _file_descriptor() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="stoplog/envoy.proto",
        package=_PACKAGE,
        dependency=[duration_pb2.DESCRIPTOR.name, wrappers_pb2.DESCRIPTOR.name],
        syntax="editions",
        edition=descriptor_pb2.EDITION_2023,
    )
    features = file.options.features
    features.field_presence = descriptor_pb2.FeatureSet.IMPLICIT
    # Envoy copies header fields of API callers into the message. If a field that is not UTF-8 made the
    # message invalid, Envoy would allow the request without a check.
    features.utf8_validation = descriptor_pb2.FeatureSet.NONE
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, repeated in fields:
            label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
            field = message.field.add(name=field_name, number=number, label=label)
            if isinstance(kind, int):
                field.type = Field.Type.ValueType(kind)
            else:
                field.type = Field.TYPE_ENUM if kind in _ENUMS else Field.TYPE_MESSAGE
                field.type_name = f".{kind}" if "." in kind else f".{_PACKAGE}.{kind}"
    return file


def _message_class(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


_pool: Final = descriptor_pool.Default()
_pool.AddSerializedFile(_file_descriptor().SerializeToString())

HealthCheckRequest: Final = _message_class("HealthCheckRequest")
HealthCheckResponse: Final = _message_class("HealthCheckResponse")
RateLimitRequest: Final = _message_class("RateLimitRequest")
RateLimitResponse: Final = _message_class("RateLimitResponse")
