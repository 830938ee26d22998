"""Generated from bpf/core/abi.h by generate_abi.py (`make bpf`): do not edit."""

from enum import IntEnum
from struct import Struct
from typing import NamedTuple


class Abi(IntEnum):
    ABI_VERSION = 18
    METHOD_MAX = 16
    TARGET_MAX = 256
    HOST_MAX = 128
    TRACESTATE_MAX = 512
    PATH_MAX = 108
    BUCKETS = 15
    TRACEPARENT_BYTES = 70
    ENDED_AT_ONCE = 8


class Kind(IntEnum):
    SERVER = 1
    CLIENT = 2
    JOB = 3


class Evidence(IntEnum):
    NONE = 0
    HEADER = 1
    CONNECT = 2
    RESTORE = 3
    THREAD = 4
    PACKET = 5
    GOROUTINE = 6
    CONTEXT = 7
    PYTHON = 8
    JAVA = 9
    UNIX = 10
    TICK = 11
    PROXY = 12
    RUBY = 13
    NODE = 14
    JOB = 15


class End(IntEnum):
    COMPLETE = 0
    CLOSED = 1
    CLOSE_DELIMITED = 2


class SpanFlags(IntEnum):
    SPAN_TLS = 1
    SPAN_GRPC = 2
    SPAN_UNIX = 4
    SPAN_LIKELY = 8


class Method(IntEnum):
    OTHER = 0
    GET = 1
    HEAD = 2
    POST = 3
    PUT = 4
    DELETE = 5
    CONNECT = 6
    OPTIONS = 7
    TRACE = 8
    PATCH = 9


class Sampler(IntEnum):
    ALWAYS_OFF = 0
    ALWAYS_ON = 1
    RATIO = 2


class Counter(IntEnum):
    REQUESTS_SERVER = 0
    REQUESTS_CLIENT = 1
    SPANS_SENT = 2
    SPANS_UNSAMPLED = 3
    SPANS_DROPPED_RING_FULL = 4
    INJECTED = 5
    INJECTED_TRACESTATE = 6
    ADOPTED_HEADER = 7
    PARENT_CONNECT = 8
    PARENT_RESTORE = 9
    PARENT_THREAD = 10
    ROOT_NO_CONTEXT = 11
    ROOT_AMBIGUOUS = 12
    ROOT_GOROUTINE = 13
    ROOT_VIRTUAL_THREAD = 14
    ROOT_TOO_OLD = 15
    ROOT_FANOUT = 16
    ROOT_PARENT_ENDED = 17
    RESTARTED_TRACEPARENT = 18
    DROPPED_TRACESTATE = 19
    SKIP_PIPELINED = 20
    SKIP_SPLIT_BLANK = 21
    SKIP_HEADERS_TOO_LONG = 22
    SKIP_MALFORMED = 23
    SKIP_OWN_TRACESTATE = 24
    SKIP_NO_MEMORY = 25
    SKIP_NOT_ENROLLED = 26
    SKIP_NOT_HTTP = 27
    SKIP_TUNNEL = 28
    SKIP_NEAR_LIMIT = 29
    SKIP_MPTCP = 30
    LOST_GAP = 31
    LOST_BUSY = 32
    LOST_NOT_HTTP = 33
    LOST_EARLY = 34
    EARLY_READ = 35
    EARLY_TAKEN = 36
    SKIP_OUT_OF_WINDOW = 37
    ENROLLED = 38
    ENROL_BUSY = 39
    ENROL_FAILED = 40
    EVICTED = 41
    EVICTED_FIONREAD = 42
    FIONREAD_LEARNED = 43
    FULL_TRUST = 44
    FULL_REQUESTS = 45
    FULL_TRACESTATES = 46
    FULL_DURATIONS = 47
    FULL_STORAGE = 48
    FORCED_DROP = 49
    OPTION_WRITTEN = 50
    OPTION_READ = 51
    OPTION_TAKEN = 52
    OPTION_MALFORMED = 53
    OPTION_STRANGER = 54
    OPTION_STALE = 55
    OPTION_NO_ROOM = 56
    OPTION_TOO_BIG = 57
    TLS_NOT_HTTP = 58
    TLS_NO_SOCKET = 59
    TLS_LOST = 60
    FULL_TLS = 61
    FULL_INCOMING = 62
    PARENT_GOROUTINE = 63
    PARENT_CONTEXT = 64
    GO_CHILD_UNKNOWN = 65
    GO_CHILD_RECEIVES = 66
    GO_TOO_DEEP = 67
    FULL_GO = 68
    GO_NO_SOCKET = 69
    FULL_GO_STARTS = 70
    GO_WRITTEN = 71
    GO_WRITE_UNPROVEN = 72
    GO_WRITE_NO_ROOM = 73
    GO_WRITE_MISMATCH = 74
    GO_WRITE_FAILED = 75
    GO_CLIENT_CONN = 76
    TLS_BEGUN = 77
    TLS_ENDED = 78
    TLS_GAVE_WAY = 79
    GO_BEGUN = 80
    GO_ENDED = 81
    PARENT_PYTHON = 82
    PARENT_JAVA = 83
    PARENT_UNIX = 84
    UNIX_UNSEEN = 85
    UNIX_RACED = 86
    UNIX_UNREAD = 87
    ROOT_NOT_PARSED = 88
    PARENT_TICK = 89
    ROOT_NOT_PROVEN = 90
    ROOT_CONTRADICTED = 91
    CONTRADICTED_ANSWER = 92
    CONTRADICTED_READ = 93
    CONTRADICTED_RESPONSE = 94
    CONTRADICTED_IDLE = 95
    CONTRADICTED_LATE = 96
    CONTRADICTED_CONNECTION = 97
    GO_GAVE_WAY = 98
    ROOT_JAVA_OTHER_THREAD = 99
    ROOT_JAVA_SHARED_THREAD = 100
    JAVA_CONTRADICTED = 101
    ROOT_JAVA_UNREADABLE = 102
    ROOT_PYTHON_TASK = 103
    ROOT_PYTHON_UNKNOWN = 104
    PYTHON_UNREADABLE = 105
    PYTHON_INTERPRETERS = 106
    PYTHON_UNFREED = 107
    PARENT_PROXY = 108
    ROOT_PROXY_OTHER = 109
    UPDATED_HEADER = 110
    ROOT_PROXY_UNKNOWN = 111
    PARENT_RUBY = 112
    ROOT_RUBY_OTHER_THREAD = 113
    RUBY_SHARED_THREAD = 114
    PARENT_NODE = 115
    ROOT_NODE_TASK = 116
    ROOT_NODE_UNKNOWN = 117
    ROOT_RUNTIME_UNREADABLE = 118
    ROOT_NODE_HTTP2 = 119
    PARENT_JOB = 120
    JOBS_BEGUN = 121
    COUNTERS = 122


class Go(IntEnum):
    UNKNOWN = 65535
    BINARIES = 256
    AGAIN = 131072
    RESTARTS = 65536


class GoStart(IntEnum):
    NEW = 0
    INHERITS = 1
    RECEIVES = 2


class GoWrites(IntEnum):
    HTTP1 = 1
    HTTP2 = 2
    GRPC = 4


class RequestFlags(IntEnum):
    REQUEST_PROBED = 1
    REQUEST_SETTLED = 2
    REQUEST_JOB = 4


class RuntimeKind(IntEnum):
    RUNTIME_UNKNOWN = 0
    RUNTIME_PYTHON = 1
    RUNTIME_JAVA = 2
    RUNTIME_HAPROXY = 3
    RUNTIME_NGINX = 4
    RUNTIME_VARNISH = 5
    RUNTIME_RUBY = 6
    RUNTIME_NODE = 7


class Jobs(IntEnum):
    NONE = 0
    CELERY = 1
    RQ = 2


class Java(IntEnum):
    UNKNOWN = 65535
    BINARIES = 256
    IN_NATIVE = 4
    VIRTUAL = 18446744073709551615


class Parents(IntEnum):
    PROVEN = 0
    LIKELY = 1


class CgroupFlags(IntEnum):
    CGROUP_TRACED = 1
    CGROUP_PROVEN = 2
    CGROUP_LIKELY = 4


class ProgramKind(IntEnum):
    PROGRAM_UNKNOWN = 0
    PROGRAM_THREADS = 1
    PROGRAM_EVENTS = 2
    PROGRAM_WORKERS = 3
    PROGRAM_TIMERS = 4


class RuntimeFlags(IntEnum):
    RUNTIME_WORKERS = 1
    RUNTIME_TASKS = 2
    RUNTIME_READABLE = 4
    RUNTIME_SETTLED = 8
    RUNTIME_TURNED = 16
    RUNTIME_TAKES = 32
    RUNTIME_SHARED = 64


class Seen(IntEnum):
    ANSWER = 0
    READ = 1
    RESPONSE = 2
    IDLE = 3
    LATE = 4
    CONNECTION = 5
    WAITS = 6
    OVERLAP = 7
    ALL = 8
    CONTRADICTIONS = 6


class Found(IntEnum):
    PROVEN = 0
    LIKELY = 1
    NOT_PROVEN = 2
    CONTRADICTED = 3
    AMBIGUOUS = 4
    ENDED = 5
    NOTHING = 6
    ALL = 7


class Config(NamedTuple):
    abi_version: int
    pid_namespace: int
    fionread_broken: int


CONFIG = Struct("<2IB3x")


class Settings(NamedTuple):
    ratio_bound: int
    complete_ns: int
    sampler: int
    parent_based: int
    trace_unlisted: int
    packets: int
    ticks: int
    limits: int
    parents: int
    updates: int
    node: int
    sends: int


SETTINGS = Struct("<2Q10B6x")


class Span(NamedTuple):
    start_ns: int
    end_ns: int
    cgroup_id: int
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    local_addr: bytes
    peer_addr: bytes
    local_port: int
    peer_port: int
    status: int
    kind: int
    evidence: int
    trace_flags: int
    http_minor: int
    end: int
    method_len: int
    target_len: int
    host_len: int
    tracestate_len: int
    flags: int
    http_major: int
    pid: int
    method: bytes
    host: bytes
    target: bytes
    path: bytes
    path_len: int
    tracestate: bytes


SPAN = Struct("<3Q16s8s8s16s16s3H6B3H2BI16s128s256s108sH2x512s")


class DurationKey(NamedTuple):
    cgroup_id: int
    status: int
    kind: int
    method: int
    http_minor: int
    tls: int
    http_major: int
    grpc: int


DURATION_KEY = Struct("<QH6B")


class Duration(NamedTuple):
    requests: int
    sum_ns: int
    buckets_0: int
    buckets_1: int
    buckets_2: int
    buckets_3: int
    buckets_4: int
    buckets_5: int
    buckets_6: int
    buckets_7: int
    buckets_8: int
    buckets_9: int
    buckets_10: int
    buckets_11: int
    buckets_12: int
    buckets_13: int
    buckets_14: int


DURATION = Struct("<2Q15Q")


class Request(NamedTuple):
    start_ns: int
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    reader: int
    answering: int
    fanout: int
    trace_flags: int
    flags: int
    tracestate_len: int
    sock: int
    socket: int
    java: int
    answer_end: int
    keeps: int


REQUEST = Struct("<Q16s8s8s2QI2BH2Q2IB7x")


class GoBinary(NamedTuple):
    newproc_at: int
    round_trip_at: int
    serve_at: int
    run_handler_at: int
    write_request_at: int
    read_transfer_at: int
    grpc_serve_at: int
    grpc_call_at: int
    grpc_finish_at: int
    grpc_put_at: int
    write_headers_at: int
    write_header_at: int
    tcp_conn_type: int
    response_type: int
    tls_conn_type: int
    grpc_server_type: int
    grpc_client_type: int
    grpc_error_type: int
    wrap_error_type: int
    grpc_incoming_type: int
    grpc_outgoing_type: int
    grpc_headers_type: int
    grpc_buffer_type: int
    buffer_type: int
    g_goid: int
    g_parent_goid: int
    g_m: int
    m_p: int
    p_goidcache: int
    p_goidcacheend: int
    request_ctx: int
    persist_conn_conn: int
    persist_conn_tls_state: int
    persist_conn_br: int
    fd_sysfd: int
    request_method: int
    request_url: int
    request_proto_major: int
    request_header: int
    request_host: int
    request_uri: int
    request_tls: int
    url_host: int
    url_path: int
    url_raw_query: int
    response_conn: int
    response_status: int
    conn_rwc: int
    client_response_status: int
    h2_server_conn: int
    h2_writer_state: int
    h2_state_status: int
    h2_stream_conn: int
    h2_client_conn: int
    h2_client_tls_state: int
    h2_fields: int
    grpc_stream: int
    grpc_stream_method: int
    grpc_stream_ctx: int
    grpc_server_conn: int
    grpc_attempt_stream: int
    grpc_attempt_transport: int
    grpc_client_conn: int
    grpc_call_header: int
    grpc_call_ctx: int
    grpc_call_first: int
    grpc_header_host: int
    grpc_header_method: int
    grpc_error_status: int
    grpc_error_proto: int
    grpc_status_proto: int
    grpc_proto_code: int
    wrap_error_err: int
    persist_conn_bw: int
    persist_conn_is_client_conn: int
    transfer_writer_header: int
    buffer_buf: int
    buffer_n: int
    framer_w: int
    h2_stream_id: int
    grpc_attempt_ctx: int
    grpc_headers_hf: int
    grpc_headers_init: int
    grpc_loopy_cbuf: int
    grpc_buffer_buf: int
    grpc_buffer_handle: int
    grpc_buffer_offset: int
    swiss_maps: int
    writes: int


GO_BINARY = Struct("<24Q63H2B")


class GoStartKey(NamedTuple):
    binary: int
    pc: int


GO_START_KEY = Struct("<I4xQ")


class Runtime(NamedTuple):
    base: int
    check_at: int
    check: int
    born: int
    binary: int
    kind: int
    flags: int
    executed: int
    jobs: int
    pool: int
    port: int
    acceptor: int
    since_ns: int
    others_0: int
    others_1: int
    others_2: int
    others_3: int


RUNTIME = Struct("<3QIH2BI2BH2Q4H")


class JavaBinary(NamedTuple):
    threads: int
    list_length: int
    list_threads: int
    thread_osthread: int
    thread_state: int
    thread_owner: int
    thread_entry: int
    thread_vthread: int
    osthread_id: int
    object_eetop: int
    object_tid: int


JAVA_BINARY = Struct("<Q10H4x")


class PythonBinary(NamedTuple):
    runtime_at: int
    type_at: int
    key_at: int
    current_at: int
    thread_id_at: int
    context_at: int
    specific_at: int
    pthread_at: int
    thread_contexts: int


PYTHON_BINARY = Struct("<2Q6HB3x")


class ProxyBinary(NamedTuple):
    no_descriptor: int
    descriptor_at: int


PROXY_BINARY = Struct("<IH2x")


class Program(NamedTuple):
    cgroup_id: int
    inode: int
    device: int
    runs: int


PROGRAM = Struct("<2Q2I")


class Lasting(NamedTuple):
    cgroup: int
    inode: int
    size: int
    device: int
    generation: int


LASTING = Struct("<3Q2I")


class Trust(NamedTuple):
    earned: int
    seen_0: int
    seen_1: int
    seen_2: int
    seen_3: int
    seen_4: int
    seen_5: int
    seen_6: int
    seen_7: int
    found_0: int
    found_1: int
    found_2: int
    found_3: int
    found_4: int
    found_5: int
    found_6: int
    kind: int
    recalled: int


TRUST = Struct("<Q8Q7Q2B6x")
