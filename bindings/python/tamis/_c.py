"""include/tamis.h as ctypes: each C declaration is quoted above its binding, in the header's order. Owns constants,
structs and functions, and turns a failed status into an exception; refuses to know anything about numpy."""
from __future__ import annotations

from ctypes import (CFUNCTYPE, POINTER, Structure, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint32,
                    c_uint64, c_void_p, sizeof)
from typing import Any

from . import _errors, _library

library = _library.load()
FUNCTIONS: dict[str, Any] = {}  # every bound function by its C name


class status(c_int32):
    """tamis_status as a result: a negative one raises."""


def check(result: status, function: Any, arguments: tuple) -> None:
    """Raises the exception of a failed call, with the library's own line of text."""
    if result.value != 0:
        text = last_error().decode("utf-8", "replace")
        raise _errors.error(result.value, status_name(result.value).decode(), text)


def bind(name: str, result: Any, *arguments: Any) -> Any:
    """One function of the library. ctypes releases the GIL while it runs."""
    try:
        function = getattr(library, name)
    except AttributeError:
        raise ImportError(f"{library._name} has no {name}: it is older than this package") from None
    function.restype, function.argtypes = result, list(arguments)
    if result is status:
        function.errcheck = check
    FUNCTIONS[name] = function
    return function


# ============================================ 1. Version and errors ============================================

STATUS = {"OK": 0, "E_ARGUMENT": -1, "E_MEMORY": -2, "E_FULL": -3, "E_IO": -4, "E_FORMAT": -5, "E_UNSUPPORTED": -6,
          "E_CANCELLED": -7, "E_BUDGET": -8, "E_BUSY": -9, "E_INTERNAL": -10}

# ================================================= 2. Context ==================================================

LOG = {"LOG_ERROR": 1, "LOG_WARNING": 2, "LOG_INFO": 3}

# void *(*alloc)(void *user, size_t bytes, size_t alignment);
Alloc = CFUNCTYPE(c_void_p, c_void_p, c_size_t, c_size_t)
# void (*release)(void *user, void *memory, size_t bytes);
Release = CFUNCTYPE(None, c_void_p, c_void_p, c_size_t)
# void (*task)(void *arg, size_t index)
Task = CFUNCTYPE(None, c_void_p, c_size_t)
# void (*parallel)(void *user, size_t count, void (*task)(void *arg, size_t index), void *arg);
Parallel = CFUNCTYPE(None, c_void_p, c_size_t, Task, c_void_p)
# void (*log)(void *user, int32_t level, const char *message);
Log = CFUNCTYPE(None, c_void_p, c_int32, c_char_p)


class Sized(Structure):
    """An option struct: `size` is filled in, other fields are given by name, zero means default."""

    def __init__(self, **fields: Any):
        super().__init__(size=sizeof(type(self)), **fields)


class ContextOptions(Sized):  # struct tamis_ctx_options
    _fields_ = [("size", c_uint32), ("threads", c_uint32), ("max_bytes", c_uint64), ("isa", c_char_p),
                ("alloc", Alloc), ("release", Release), ("parallel", Parallel), ("log", Log), ("user", c_void_p)]


# =========================================== 3. Tensors and operators ==========================================

DTYPE = {"F32": 1, "F16": 2, "BF16": 3, "F8E4M3": 4, "I8": 5, "I32": 6, "MLA656": 7, "INDEX132": 8}


class Tensor(Structure):  # struct tamis_tensor
    _fields_ = [("data", c_void_p), ("dtype", c_int32), ("ndim", c_int32), ("shape", c_int64 * 4),
                ("stride", c_int64 * 4), ("scale", POINTER(c_float)), ("block", c_int64)]


class QuantizeOptions(Sized):  # struct tamis_quantize_options
    _fields_ = [("size", c_uint32), ("power_of_two", c_uint32), ("hadamard", c_uint32)]


class SelectOptions(Sized):  # struct tamis_select_options
    _fields_ = [("size", c_uint32), ("k", c_uint32), ("visible", POINTER(c_int32)), ("all_visible", c_uint32)]


class AttendOptions(Sized):  # struct tamis_attend_options
    _fields_ = [("size", c_uint32), ("softmax_scale", c_float), ("indices", POINTER(Tensor)),
                ("visible", POINTER(c_int32)), ("all_visible", c_uint32), ("sink", POINTER(c_float))]


# =============================================== 4. Paged cache ================================================


class CacheOptions(Sized):  # struct tamis_cache_options
    _fields_ = [("size", c_uint32), ("layers", c_uint32), ("kv_heads", c_uint32), ("key_dim", c_uint32),
                ("value_dim", c_uint32), ("own_values", c_uint32), ("index_dim", c_uint32), ("kv_dtype", c_int32),
                ("index_dtype", c_int32), ("page_tokens", c_uint32), ("max_tokens", c_uint64)]


class OpenOptions(Sized):  # struct tamis_open_options
    _fields_ = [("size", c_uint32), ("copy", c_uint32), ("trust_pages", c_uint32)]


class Rotary(Sized):  # struct tamis_rotary
    _fields_ = [("size", c_uint32), ("dims", c_uint32), ("frequencies", POINTER(c_float)), ("key_first", c_uint32),
                ("key_half_split", c_uint32), ("index_first", c_uint32), ("index_interleaved", c_uint32),
                ("index_hadamard", c_uint32)]


class StoreStats(Sized):  # struct tamis_store_stats
    _fields_ = [("size", c_uint32), ("documents", c_uint32), ("bytes", c_uint64), ("matches", c_uint64),
                ("hits", c_uint64), ("tokens_asked", c_uint64), ("tokens_reused", c_uint64), ("stored", c_uint64),
                ("evicted", c_uint64), ("damaged", c_uint64)]


# ================================================= 5. Counters =================================================

OP = {"OP_ALL": 0, "OP_QUANTIZE": 1, "OP_DEQUANTIZE": 2, "OP_INDEX": 3, "OP_TOPK": 4, "OP_SELECT": 5, "OP_ATTEND": 6,
      "OP_MERGE": 7, "OP_PROJECT": 8, "OP_CACHE": 9}


class Counters(Sized):  # struct tamis_counters
    _fields_ = [("size", c_uint32), ("op", c_int32), ("calls", c_uint64), ("queries", c_uint64),
                ("keys_scored", c_uint64), ("keys_selected", c_uint64), ("keys_attended", c_uint64),
                ("keys_dense", c_uint64), ("flops", c_uint64), ("bytes", c_uint64), ("dense_flops", c_uint64),
                ("dense_bytes", c_uint64), ("wall_nanoseconds", c_uint64), ("cpu_nanoseconds", c_uint64),
                ("keys_expanded", c_uint64)]


class Limits(Sized):  # struct tamis_limits
    _fields_ = [("size", c_uint32), ("threads", c_uint32), ("i8_macs_per_second", c_double),
                ("bf16_macs_per_second", c_double), ("f32_macs_per_second", c_double),
                ("memory_bytes_per_second", c_double)]


# ================================================== 6. Model ===================================================

ATTENTION = {"ATTENTION_AUTOMATIC": 0, "ATTENTION_DENSE": 1, "ATTENTION_SPARSE": 2}

# int32_t (*selected)(void *user, int32_t layer, int32_t seq, int64_t first, int32_t rows, int32_t k,
#                     int32_t *indices);
Selected = CFUNCTYPE(c_int32, c_void_p, c_int32, c_int32, c_int64, c_int32, c_int32, POINTER(c_int32))


class ModelOptions(Sized):  # struct tamis_model_options
    _fields_ = [("size", c_uint32), ("widen", c_uint32), ("step_tokens", c_uint32), ("one_form", c_uint32)]


class ModelInfo(Sized):  # struct tamis_model_info
    _fields_ = [("size", c_uint32), ("layers", c_uint32), ("vocabulary", c_uint32), ("hidden", c_uint32),
                ("heads", c_uint32), ("key_dim", c_uint32), ("value_dim", c_uint32), ("index_heads", c_uint32),
                ("index_dim", c_uint32), ("index_layers", c_uint32), ("top_k", c_uint32), ("experts", c_uint32),
                ("experts_per_token", c_uint32), ("max_tokens", c_uint32), ("token_count", c_uint32),
                ("begin_token", c_int32), ("end_token", c_int32), ("parameters", c_uint64),
                ("active_parameters", c_uint64), ("weight_bytes", c_uint64)]


class TokenizeOptions(Sized):  # struct tamis_tokenize_options
    _fields_ = [("size", c_uint32), ("bare", c_uint32), ("special_as_text", c_uint32)]


class EvalOptions(Sized):  # struct tamis_eval_options
    _fields_ = [("size", c_uint32), ("all_logits", c_uint32), ("attention", c_int32), ("top_k", c_uint32),
                ("selected", Selected), ("user", c_void_p), ("traces", POINTER(c_void_p))]


class SamplerOptions(Sized):  # struct tamis_sampler_options
    _fields_ = [("size", c_uint32), ("temperature", c_float), ("top_k", c_uint32), ("top_p", c_float),
                ("seed", c_uint64)]


ROLE = {"ROLE_SYSTEM": 0, "ROLE_USER": 1, "ROLE_ASSISTANT": 2, "ROLE_TOOL": 3, "ROLE_DEVELOPER": 4}
STOP = {"STOP_NONE": 0, "STOP_END_TOKEN": 1, "STOP_TEXT": 2, "STOP_MAX_TOKENS": 3, "STOP_FULL": 4, "STOP_CALLER": 5,
        "STOP_FAILED": 6}


class Message(Structure):  # struct tamis_message
    _fields_ = [("role", c_int32), ("content", c_char_p), ("content_bytes", c_size_t), ("reasoning", c_char_p),
                ("reasoning_bytes", c_size_t), ("tools", c_char_p), ("tools_bytes", c_size_t),
                ("tool_calls", c_char_p), ("tool_calls_bytes", c_size_t), ("response_format", c_char_p),
                ("response_format_bytes", c_size_t)]


class GenerateOptions(Sized):  # struct tamis_generate_options
    _fields_ = [("size", c_uint32), ("max_tokens", c_uint32), ("sampler", POINTER(SamplerOptions)),
                ("eval", POINTER(EvalOptions)), ("stop_tokens", POINTER(c_int32)), ("stop_token_count", c_size_t),
                ("stop_texts", POINTER(c_char_p)), ("stop_text_count", c_size_t), ("ignore_end", c_uint32)]


class Generated(Sized):  # struct tamis_generated
    _fields_ = [("size", c_uint32), ("token", c_int32), ("text", c_void_p), ("bytes", c_size_t), ("stop", c_int32),
                ("prompt_tokens", c_uint64), ("tokens", c_uint64), ("prefill_seconds", c_double),
                ("decode_seconds", c_double)]


# typedef int32_t (*tamis_on_token)(void *user, const tamis_generated *generated);
OnToken = CFUNCTYPE(c_int32, c_void_p, POINTER(Generated))


# ================================================ 7. Cost meter =================================================

BASIS = {"BASIS_NONE": 0, "BASIS_MEASURED": 1, "BASIS_CALIBRATED": 2, "BASIS_ANALYTIC": 3}
MODE = {"MODE_AUTOMATIC": 0, "MODE_SPARSE": 1, "MODE_DENSE": 2}
PHASE = {"PHASE_PREFILL": 1, "PHASE_DECODE": 2}
BREAK_EVEN = {"BREAK_EVEN_DECODE": 1, "BREAK_EVEN_PREFILL": 2, "BREAK_EVEN_PROMPT": 3}
BILL = {"BILL_LIST": 1, "BILL_MACHINE": 2, "BILL_ENERGY": 3}


class Architecture(Sized):  # struct tamis_architecture
    _fields_ = [("size", c_uint32), ("layers", c_uint32), ("heads", c_uint32), ("key_dim", c_uint32),
                ("value_dim", c_uint32), ("expanded_key_dim", c_uint32), ("expanded_value_dim", c_uint32),
                ("index_heads", c_uint32), ("index_dim", c_uint32), ("index_layers", c_uint32), ("top_k", c_uint32),
                ("pooling", c_uint32), ("attention_only", c_uint32), ("active_parameters", c_double),
                ("weight_bytes", c_double), ("cache_bytes", c_double), ("index_key_bytes", c_double),
                ("index_parameters", c_double), ("head_parameters", c_double), ("weight_matrices", c_uint64)]


class MachineOptions(Sized):  # struct tamis_machine_options
    _fields_ = [("size", c_uint32), ("name", c_char_p), ("date", c_char_p), ("price_per_hour", c_char_p),
                ("currency", c_char_p), ("architecture", POINTER(Architecture)), ("model", c_void_p)]


class Request(Sized):  # struct tamis_request
    _fields_ = [("size", c_uint32), ("mode", c_uint32), ("input_tokens", c_uint64), ("cached_tokens", c_uint64),
                ("output_tokens", c_uint64), ("batch", c_uint32), ("chunk", c_uint32)]


class Prediction(Sized):  # struct tamis_prediction
    _fields_ = [("size", c_uint32), ("basis", c_uint32), ("seconds", c_double), ("low_seconds", c_double),
                ("high_seconds", c_double), ("prefill_seconds", c_double), ("decode_seconds", c_double),
                ("flops", c_double), ("bytes", c_double)]


class PriceTier(Structure):  # struct tamis_price_tier
    _fields_ = [("above", c_uint64), ("input", c_char_p), ("cached", c_char_p), ("cache_write", c_char_p),
                ("output", c_char_p)]


class PricesOptions(Sized):  # struct tamis_prices_options
    _fields_ = [("size", c_uint32), ("tiers", c_uint32), ("name", c_char_p), ("currency", c_char_p),
                ("source", c_char_p), ("date", c_char_p), ("input", c_char_p), ("cached", c_char_p),
                ("cache_write", c_char_p), ("output", c_char_p), ("cache_storage", c_char_p),
                ("tier", POINTER(PriceTier)), ("litellm", c_char_p), ("litellm_bytes", c_size_t), ("model", c_char_p),
                ("machine_hour", c_char_p), ("busy_share", c_char_p), ("kilowatt_hour", c_char_p)]


class Cost(Sized):  # struct tamis_cost
    _fields_ = [("size", c_uint32), ("basis", c_uint32), ("calls", c_uint64), ("queries", c_uint64),
                ("keys_scored", c_uint64), ("keys_selected", c_uint64), ("keys_attended", c_uint64),
                ("keys_dense", c_uint64), ("input_tokens", c_uint64), ("cached_tokens", c_uint64),
                ("cache_write_tokens", c_uint64), ("cache_token_seconds", c_uint64), ("output_tokens", c_uint64),
                ("flops", c_uint64), ("bytes", c_uint64), ("nanoseconds", c_uint64), ("cpu_nanoseconds", c_uint64),
                ("dense_flops", c_uint64), ("dense_bytes", c_uint64), ("dense_nanoseconds", c_uint64),
                ("microjoules", c_int64), ("keys_expanded", c_uint64)]


class Bill(Sized):  # struct tamis_bill
    _fields_ = [("size", c_uint32), ("kind", c_int32), ("amount", c_char * 64), ("currency", c_char * 8)]


UNIT = {"UNIT_MONEY": 1, "UNIT_TOKENS": 2, "UNIT_FLOPS": 4, "UNIT_NANOSECONDS": 8}
EXPORT = {"EXPORT_JSON": 1, "EXPORT_PROMETHEUS": 2, "EXPORT_OPENTELEMETRY": 3, "EXPORT_OPENAI": 4,
          "EXPORT_LANGCHAIN": 5, "EXPORT_CSV": 6}


class Amount(Sized):  # struct tamis_amount
    _fields_ = [("size", c_uint32), ("units", c_uint32), ("money", c_char * 64), ("currency", c_char * 8),
                ("tokens", c_uint64), ("flops", c_uint64), ("nanoseconds", c_uint64)]


class MeterOptions(Sized):  # struct tamis_meter_options
    _fields_ = [("size", c_uint32), ("energy", c_uint32), ("label", c_char_p), ("machine", c_void_p),
                ("budget", POINTER(Amount))]


class ExportOptions(Sized):  # struct tamis_export_options
    _fields_ = [("size", c_uint32), ("no_header", c_uint32), ("model", c_char_p), ("prices", c_void_p),
                ("time_unix_nanoseconds", c_uint64)]


# ================================================= 8. Indexer ==================================================

WARN = {"WARN_FEW_SEQUENCES": 1, "WARN_FEW_ROWS": 2, "WARN_NOTHING_LEARNT": 4}


class CaptureOptions(Sized):  # struct tamis_capture_options
    _fields_ = [("size", c_uint32), ("softmax_scale", c_float), ("positions", POINTER(c_int32)),
                ("all_visible", c_uint32), ("queries", POINTER(Tensor)), ("keys", POINTER(Tensor))]


class IndexerOptions(Sized):  # struct tamis_indexer_options
    _fields_ = [("size", c_uint32), ("width", c_uint32), ("features", c_uint32), ("heads", c_uint32),
                ("dim", c_uint32), ("rope_dim", c_int32), ("rope_base", c_float),
                ("rope_frequencies", POINTER(c_float)), ("seed", c_uint64)]


# typedef int32_t (*tamis_on_step)(void *user, uint32_t step, uint32_t steps, double loss);
OnStep = CFUNCTYPE(c_int32, c_void_p, c_uint32, c_uint32, c_double)


class FitOptions(Sized):  # struct tamis_fit_options
    _fields_ = [("size", c_uint32), ("steps", c_uint32), ("rows", c_uint32), ("learning_rate", c_float),
                ("selected", c_uint32), ("seed", c_uint64), ("on_step", OnStep), ("user", c_void_p),
                ("random_start", c_uint32)]


class FitReport(Sized):  # struct tamis_fit_report
    _fields_ = [("size", c_uint32), ("steps", c_uint32), ("warnings", c_uint32), ("sequences", c_uint64),
                ("rows", c_uint64), ("first_loss", c_double), ("last_loss", c_double), ("seconds", c_double),
                ("flops", c_double), ("closed_start", c_uint32)]


class MassAt(Structure):  # struct tamis_mass_at
    _fields_ = [("k", c_uint64), ("oracle", c_double), ("indexer", c_double), ("recency", c_double),
                ("random", c_double), ("recall", c_double)]


class DiagnosisOptions(Sized):  # struct tamis_diagnosis_options
    _fields_ = [("size", c_uint32), ("least_visible", c_uint32), ("mass", c_double)]


class Diagnosis(Sized):  # struct tamis_diagnosis
    _fields_ = [("size", c_uint32), ("warnings", c_uint32), ("sequences", c_uint64), ("rows", c_uint64),
                ("divergence", c_double), ("mass", c_double), ("oracle_k", c_uint64), ("indexer_k", c_uint64)]


# ================================================ 9. Scheduler =================================================

class SchedulerOptions(Sized):  # struct tamis_scheduler_options
    _fields_ = [("size", c_uint32), ("max_running", c_uint32), ("max_waiting", c_uint32), ("step_tokens", c_uint32),
                ("max_bytes", c_uint64), ("attention", c_int32), ("top_k", c_uint32)]


class SubmitOptions(Sized):  # struct tamis_submit_options
    _fields_ = [("size", c_uint32), ("priority", c_int32), ("tenant", c_uint64), ("prefix", c_void_p),
                ("meter", c_void_p), ("generate", POINTER(GenerateOptions))]


class Served(Sized):  # struct tamis_served
    _fields_ = [("size", c_uint32), ("stop", c_int32), ("request", c_uint64), ("tokens", POINTER(c_int32)),
                ("token_count", c_size_t), ("text", c_void_p), ("bytes", c_size_t), ("status", c_int32),
                ("preemptions", c_uint32), ("prefix_tokens", c_uint64), ("prompt_tokens", c_uint64),
                ("output_tokens", c_uint64), ("waiting_seconds", c_double), ("first_seconds", c_double),
                ("seconds", c_double), ("error", c_char * 160)]


class SchedulerStats(Sized):  # struct tamis_scheduler_stats
    _fields_ = [("size", c_uint32), ("waiting", c_uint32), ("running", c_uint32), ("untaken", c_uint32),
                ("submitted", c_uint64), ("finished", c_uint64), ("cancelled", c_uint64), ("failed", c_uint64),
                ("preemptions", c_uint64), ("steps", c_uint64), ("evaluated_tokens", c_uint64),
                ("repeated_tokens", c_uint64), ("output_tokens", c_uint64), ("step_seconds", c_double)]


# ================================================== Functions ==================================================

# uint32_t tamis_version(void);
version = bind("tamis_version", c_uint32)

# const char *tamis_status_name(tamis_status status);
status_name = bind("tamis_status_name", c_char_p, c_int32)

# const char *tamis_last_error(void);
last_error = bind("tamis_last_error", c_char_p)

# tamis_status tamis_ctx_create(const tamis_ctx_options *options, tamis_ctx **ctx);
ctx_create = bind("tamis_ctx_create", status, POINTER(ContextOptions), POINTER(c_void_p))

# void tamis_ctx_free(tamis_ctx *ctx);
ctx_free = bind("tamis_ctx_free", None, c_void_p)

# void tamis_ctx_cancel(tamis_ctx *ctx);
ctx_cancel = bind("tamis_ctx_cancel", None, c_void_p)

# tamis_status tamis_ctx_bytes(tamis_ctx *ctx, uint64_t *now, uint64_t *peak);
ctx_bytes = bind("tamis_ctx_bytes", status, c_void_p, POINTER(c_uint64), POINTER(c_uint64))

# tamis_status tamis_ctx_trim(tamis_ctx *ctx);
ctx_trim = bind("tamis_ctx_trim", status, c_void_p)

# tamis_status tamis_ctx_describe(tamis_ctx *ctx, char *text, size_t capacity, size_t *needed);
ctx_describe = bind("tamis_ctx_describe", status, c_void_p, c_char_p, c_size_t, POINTER(c_size_t))

# tamis_status tamis_quantize(tamis_ctx *ctx, const tamis_tensor *x, const tamis_quantize_options *options, const
#     tamis_tensor *out);
quantize = bind("tamis_quantize", status, c_void_p, POINTER(Tensor), POINTER(QuantizeOptions), POINTER(Tensor))

# tamis_status tamis_dequantize(tamis_ctx *ctx, const tamis_tensor *x, const tamis_tensor *out);
dequantize = bind("tamis_dequantize", status, c_void_p, POINTER(Tensor), POINTER(Tensor))

# tamis_status tamis_index_scores(tamis_ctx *ctx, const tamis_tensor *q, const tamis_tensor *w, const tamis_tensor
#     *key, const tamis_select_options *options, const tamis_tensor *scores);
index_scores = bind("tamis_index_scores", status, c_void_p, POINTER(Tensor), POINTER(Tensor), POINTER(Tensor),
                    POINTER(SelectOptions), POINTER(Tensor))

# tamis_status tamis_topk(tamis_ctx *ctx, const tamis_tensor *scores, const tamis_select_options *options, const
#     tamis_tensor *indices);
topk = bind("tamis_topk", status, c_void_p, POINTER(Tensor), POINTER(SelectOptions), POINTER(Tensor))

# tamis_status tamis_select(tamis_ctx *ctx, const tamis_tensor *q, const tamis_tensor *w, const tamis_tensor *key,
#     const tamis_select_options *options, const tamis_tensor *indices, const tamis_tensor *top_scores);
select = bind("tamis_select", status, c_void_p, POINTER(Tensor), POINTER(Tensor), POINTER(Tensor),
              POINTER(SelectOptions), POINTER(Tensor), POINTER(Tensor))

# tamis_status tamis_merge_candidates(tamis_ctx *ctx, const tamis_tensor *other, const tamis_tensor *other_scores, const
#     tamis_tensor *indices, const tamis_tensor *top_scores);
merge_candidates = bind("tamis_merge_candidates", status, c_void_p, POINTER(Tensor), POINTER(Tensor), POINTER(Tensor),
                        POINTER(Tensor))

# tamis_status tamis_attend(tamis_ctx *ctx, const tamis_tensor *q, const tamis_tensor *key, const tamis_tensor
#     *value, const tamis_attend_options *options, const tamis_tensor *out, const tamis_tensor *lse);
attend = bind("tamis_attend", status, c_void_p, POINTER(Tensor), POINTER(Tensor), POINTER(Tensor),
              POINTER(AttendOptions), POINTER(Tensor), POINTER(Tensor))

# tamis_status tamis_merge(tamis_ctx *ctx, const tamis_tensor *other, const tamis_tensor *other_lse, const
#     tamis_tensor *out, const tamis_tensor *lse);
merge = bind("tamis_merge", status, c_void_p, POINTER(Tensor), POINTER(Tensor), POINTER(Tensor), POINTER(Tensor))

# tamis_status tamis_project(tamis_ctx *ctx, const tamis_tensor *x, const tamis_tensor *weight, const tamis_tensor
#     *out);
project = bind("tamis_project", status, c_void_p, POINTER(Tensor), POINTER(Tensor), POINTER(Tensor))

# tamis_status tamis_cache_create(tamis_ctx *ctx, const tamis_cache_options *options, tamis_cache **cache);
cache_create = bind("tamis_cache_create", status, c_void_p, POINTER(CacheOptions), POINTER(c_void_p))

# void tamis_cache_free(tamis_cache *cache);
cache_free = bind("tamis_cache_free", None, c_void_p)

# tamis_status tamis_cache_bytes(tamis_cache *cache, uint64_t *bytes, uint64_t *tokens);
cache_bytes = bind("tamis_cache_bytes", status, c_void_p, POINTER(c_uint64), POINTER(c_uint64))

# tamis_status tamis_seq_create(tamis_cache *cache, tamis_seq **seq);
seq_create = bind("tamis_seq_create", status, c_void_p, POINTER(c_void_p))

# void tamis_seq_free(tamis_seq *seq);
seq_free = bind("tamis_seq_free", None, c_void_p)

# tamis_status tamis_seq_fork(tamis_seq *seq, int64_t length, tamis_seq **fork);
seq_fork = bind("tamis_seq_fork", status, c_void_p, c_int64, POINTER(c_void_p))

# tamis_status tamis_seq_match(tamis_cache *cache, const int32_t *tokens, size_t count, tamis_seq **seq, int64_t
#     *matched);
seq_match = bind("tamis_seq_match", status, c_void_p, POINTER(c_int32), c_size_t, POINTER(c_void_p), POINTER(c_int64))

# tamis_status tamis_seq_extend(tamis_seq *seq, const int32_t *tokens, size_t count);
seq_extend = bind("tamis_seq_extend", status, c_void_p, POINTER(c_int32), c_size_t)

# tamis_status tamis_seq_write(tamis_seq *seq, uint32_t layer, int64_t first, const tamis_tensor *key, const
#     tamis_tensor *value, const tamis_tensor *index_key);
seq_write = bind("tamis_seq_write", status, c_void_p, c_uint32, c_int64, POINTER(Tensor), POINTER(Tensor),
                 POINTER(Tensor))

# tamis_status tamis_seq_read(tamis_seq *seq, uint32_t layer, int64_t first, const tamis_tensor *key, const
#     tamis_tensor *value, const tamis_tensor *index_key);
seq_read = bind("tamis_seq_read", status, c_void_p, c_uint32, c_int64, POINTER(Tensor), POINTER(Tensor),
                POINTER(Tensor))

# tamis_status tamis_seq_truncate(tamis_seq *seq, int64_t length);
seq_truncate = bind("tamis_seq_truncate", status, c_void_p, c_int64)

# tamis_status tamis_seq_length(tamis_seq *seq, int64_t *length);
seq_length = bind("tamis_seq_length", status, c_void_p, POINTER(c_int64))

# tamis_status tamis_seq_select(tamis_seq *const *seqs, const int32_t *rows, size_t count, uint32_t layer, const
#     tamis_tensor *q, const tamis_tensor *w, const tamis_select_options *options, const tamis_tensor *indices,
#     const tamis_tensor *top_scores);
seq_select = bind("tamis_seq_select", status, POINTER(c_void_p), POINTER(c_int32), c_size_t, c_uint32,
                  POINTER(Tensor), POINTER(Tensor), POINTER(SelectOptions), POINTER(Tensor), POINTER(Tensor))

# tamis_status tamis_seq_attend(tamis_seq *const *seqs, const int32_t *rows, size_t count, uint32_t layer, const
#     tamis_tensor *q, const tamis_attend_options *options, const tamis_tensor *out, const tamis_tensor *lse);
seq_attend = bind("tamis_seq_attend", status, POINTER(c_void_p), POINTER(c_int32), c_size_t, c_uint32,
                  POINTER(Tensor), POINTER(AttendOptions), POINTER(Tensor), POINTER(Tensor))

# tamis_status tamis_seq_save(tamis_seq *seq, const char *path, const void *fingerprint, size_t fingerprint_bytes,
#     int64_t length);
seq_save = bind("tamis_seq_save", status, c_void_p, c_char_p, c_void_p, c_size_t, c_int64)

# tamis_status tamis_seq_open(tamis_cache *cache, const char *path, const void *fingerprint, size_t fingerprint_bytes,
#     const tamis_open_options *options, tamis_seq **seq);
seq_open = bind("tamis_seq_open", status, c_void_p, c_char_p, c_void_p, c_size_t, POINTER(OpenOptions),
                POINTER(c_void_p))

# tamis_status tamis_store_open(tamis_ctx *ctx, const char *directory, uint64_t max_bytes, tamis_store **store);
store_open = bind("tamis_store_open", status, c_void_p, c_char_p, c_uint64, POINTER(c_void_p))

# void tamis_store_free(tamis_store *store);
store_free = bind("tamis_store_free", None, c_void_p)

# tamis_status tamis_store_put(tamis_store *store, tamis_seq *seq, const void *fingerprint, size_t fingerprint_bytes,
#     int64_t length);
store_put = bind("tamis_store_put", status, c_void_p, c_void_p, c_void_p, c_size_t, c_int64)

# tamis_status tamis_store_match(tamis_store *store, tamis_cache *cache, const void *fingerprint, size_t
#     fingerprint_bytes, const int32_t *tokens, size_t count, tamis_seq **seq, int64_t *matched);
store_match = bind("tamis_store_match", status, c_void_p, c_void_p, c_void_p, c_size_t, POINTER(c_int32), c_size_t,
                   POINTER(c_void_p), POINTER(c_int64))

# tamis_status tamis_store_read_stats(tamis_store *store, tamis_store_stats *stats);
store_read_stats = bind("tamis_store_read_stats", status, c_void_p, POINTER(StoreStats))

# tamis_status tamis_seq_splice(tamis_seq *seq, tamis_seq *document, int64_t first, int64_t count, const tamis_rotary
#     *rotary);
seq_splice = bind("tamis_seq_splice", status, c_void_p, c_void_p, c_int64, c_int64, POINTER(Rotary))

# tamis_status tamis_ctx_counters(tamis_ctx *ctx, int32_t op, tamis_counters *counters);
ctx_counters = bind("tamis_ctx_counters", status, c_void_p, c_int32, POINTER(Counters))

# tamis_status tamis_ctx_limits(tamis_ctx *ctx, tamis_limits *limits);
ctx_limits = bind("tamis_ctx_limits", status, c_void_p, POINTER(Limits))

# tamis_status tamis_model_open(tamis_ctx *ctx, const char *directory, const tamis_model_options *options,
#     tamis_model **model);
model_open = bind("tamis_model_open", status, c_void_p, c_char_p, POINTER(ModelOptions), POINTER(c_void_p))

# void tamis_model_free(tamis_model *model);
model_free = bind("tamis_model_free", None, c_void_p)

# tamis_status tamis_model_read_info(tamis_model *model, tamis_model_info *info);
model_read_info = bind("tamis_model_read_info", status, c_void_p, POINTER(ModelInfo))

# tamis_status tamis_model_describe(tamis_model *model, char *text, size_t capacity, size_t *needed);
model_describe = bind("tamis_model_describe", status, c_void_p, c_char_p, c_size_t, POINTER(c_size_t))

# tamis_status tamis_model_cache_options(tamis_model *model, tamis_cache_options *options);
model_cache_options = bind("tamis_model_cache_options", status, c_void_p, POINTER(CacheOptions))

# tamis_status tamis_model_splice(tamis_model *model, tamis_seq *seq, tamis_seq *document, int64_t first, int64_t
#     count, int64_t recompute);
model_splice = bind("tamis_model_splice", status, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64)

# tamis_status tamis_model_tokenize(tamis_model *model, const char *text, size_t bytes, const
#     tamis_tokenize_options *options, int32_t *tokens, size_t capacity, size_t *count);
model_tokenize = bind("tamis_model_tokenize", status, c_void_p, c_char_p, c_size_t, POINTER(TokenizeOptions),
                      POINTER(c_int32), c_size_t, POINTER(c_size_t))

# tamis_status tamis_model_detokenize(tamis_model *model, const int32_t *tokens, size_t count, uint32_t
#     skip_special, char *text, size_t capacity, size_t *needed);
model_detokenize = bind("tamis_model_detokenize", status, c_void_p, POINTER(c_int32), c_size_t, c_uint32, c_char_p,
                        c_size_t, POINTER(c_size_t))

# tamis_status tamis_model_eval(tamis_model *model, tamis_seq *const *seqs, const int32_t *tokens, const int32_t
#     *counts, size_t count, const tamis_eval_options *options, const tamis_tensor *logits);
model_eval = bind("tamis_model_eval", status, c_void_p, POINTER(c_void_p), POINTER(c_int32), POINTER(c_int32),
                  c_size_t, POINTER(EvalOptions), POINTER(Tensor))

# tamis_status tamis_sample(tamis_ctx *ctx, const tamis_tensor *logits, const tamis_sampler_options *options,
#     uint64_t draws, int32_t *token);
sample = bind("tamis_sample", status, c_void_p, POINTER(Tensor), POINTER(SamplerOptions), c_uint64, POINTER(c_int32))

# tamis_status tamis_trace_create(tamis_ctx *ctx, const int64_t *bounds, size_t count, uint32_t layers,
#     tamis_trace **trace);
trace_create = bind("tamis_trace_create", status, c_void_p, POINTER(c_int64), c_size_t, c_uint32, POINTER(c_void_p))

# void tamis_trace_free(tamis_trace *trace);
trace_free = bind("tamis_trace_free", None, c_void_p)

# tamis_status tamis_trace_read(tamis_trace *trace, double *mass, uint64_t *tokens);
trace_read = bind("tamis_trace_read", status, c_void_p, POINTER(c_double), POINTER(c_uint64))

# tamis_status tamis_trace_clear(tamis_trace *trace);
trace_clear = bind("tamis_trace_clear", status, c_void_p)

# tamis_status tamis_model_chat(tamis_model *model, const tamis_message *messages, size_t count, uint32_t
#     thinking, int32_t *tokens, size_t capacity, size_t *token_count);
model_chat = bind("tamis_model_chat", status, c_void_p, POINTER(Message), c_size_t, c_uint32, POINTER(c_int32),
                  c_size_t, POINTER(c_size_t))

# tamis_status tamis_model_parse(tamis_model *model, const char *text, size_t bytes, uint32_t thinking, char
#     *message, size_t capacity, size_t *needed);
model_parse = bind("tamis_model_parse", status, c_void_p, c_char_p, c_size_t, c_uint32, c_char_p, c_size_t,
                   POINTER(c_size_t))

# tamis_status tamis_generation_create(tamis_model *model, tamis_seq *seq, const int32_t *tokens, size_t count,
#     const tamis_generate_options *options, tamis_generation **generation);
generation_create = bind("tamis_generation_create", status, c_void_p, c_void_p, POINTER(c_int32), c_size_t,
                         POINTER(GenerateOptions), POINTER(c_void_p))

# void tamis_generation_free(tamis_generation *generation);
generation_free = bind("tamis_generation_free", None, c_void_p)

# tamis_status tamis_generation_next(tamis_generation *generation, tamis_generated *generated);
generation_next = bind("tamis_generation_next", status, c_void_p, POINTER(Generated))

# tamis_status tamis_model_generate(tamis_model *model, tamis_seq *seq, const int32_t *tokens, size_t count,
#     const tamis_generate_options *options, tamis_on_token on_token, void *user, tamis_generated *generated);
model_generate = bind("tamis_model_generate", status, c_void_p, c_void_p, POINTER(c_int32), c_size_t,
                      POINTER(GenerateOptions), OnToken, c_void_p, POINTER(Generated))

# tamis_status tamis_machine_measure(tamis_ctx *ctx, const tamis_machine_options *options, tamis_machine **machine);
machine_measure = bind("tamis_machine_measure", status, c_void_p, POINTER(MachineOptions), POINTER(c_void_p))

# tamis_status tamis_machine_published(const char *name, tamis_machine **machine);
machine_published = bind("tamis_machine_published", status, c_char_p, POINTER(c_void_p))

# tamis_status tamis_machine_parse(const char *text, size_t bytes, tamis_machine **machine);
machine_parse = bind("tamis_machine_parse", status, c_char_p, c_size_t, POINTER(c_void_p))

# tamis_status tamis_machine_text(tamis_machine *machine, char *text, size_t capacity, size_t *needed);
machine_text = bind("tamis_machine_text", status, c_void_p, c_char_p, c_size_t, POINTER(c_size_t))

# void tamis_machine_free(tamis_machine *machine);
machine_free = bind("tamis_machine_free", None, c_void_p)

# tamis_status tamis_predict_request(tamis_machine *machine, const tamis_architecture *architecture, const
#     tamis_request *request, tamis_prediction *prediction);
predict_request = bind("tamis_predict_request", status, c_void_p, POINTER(Architecture), POINTER(Request),
                       POINTER(Prediction))

# tamis_status tamis_predict_token(tamis_machine *machine, const tamis_architecture *architecture, int32_t phase,
#     int32_t mode, uint64_t keys, tamis_prediction *prediction);
predict_token = bind("tamis_predict_token", status, c_void_p, POINTER(Architecture), c_int32, c_int32, c_uint64,
                     POINTER(Prediction))

# tamis_status tamis_predict_break_even(tamis_machine *machine, const tamis_architecture *architecture, int32_t
#     kind, int32_t mode, double *tokens, double *low, double *high, uint32_t *basis);
predict_break_even = bind("tamis_predict_break_even", status, c_void_p, POINTER(Architecture), c_int32, c_int32,
                          POINTER(c_double), POINTER(c_double), POINTER(c_double), POINTER(c_uint32))

# tamis_status tamis_prices_create(const tamis_prices_options *options, tamis_prices **prices);
prices_create = bind("tamis_prices_create", status, POINTER(PricesOptions), POINTER(c_void_p))

# void tamis_prices_free(tamis_prices *prices);
prices_free = bind("tamis_prices_free", None, c_void_p)

# tamis_status tamis_prices_bill(tamis_prices *prices, int32_t kind, const tamis_cost *cost, tamis_bill *bill);
prices_bill = bind("tamis_prices_bill", status, c_void_p, c_int32, POINTER(Cost), POINTER(Bill))

# tamis_status tamis_meter_create(tamis_meter *parent, const tamis_meter_options *options, tamis_meter **meter);
meter_create = bind("tamis_meter_create", status, c_void_p, POINTER(MeterOptions), POINTER(c_void_p))

# tamis_status tamis_ctx_meter(tamis_ctx *ctx, tamis_meter **meter);
ctx_meter = bind("tamis_ctx_meter", status, c_void_p, POINTER(c_void_p))

# void tamis_meter_free(tamis_meter *meter);
meter_free = bind("tamis_meter_free", None, c_void_p)

# tamis_status tamis_meter_enter(tamis_meter *meter);
meter_enter = bind("tamis_meter_enter", status, c_void_p)

# tamis_status tamis_meter_leave(tamis_meter *meter);
meter_leave = bind("tamis_meter_leave", status, c_void_p)

# tamis_status tamis_seq_set_meter(tamis_seq *seq, tamis_meter *meter);
seq_set_meter = bind("tamis_seq_set_meter", status, c_void_p, c_void_p)

# tamis_status tamis_meter_charge(tamis_meter *meter, const tamis_cost *cost);
meter_charge = bind("tamis_meter_charge", status, c_void_p, POINTER(Cost))

# tamis_status tamis_meter_read(tamis_meter *meter, tamis_cost *cost);
meter_read = bind("tamis_meter_read", status, c_void_p, POINTER(Cost))

# tamis_status tamis_meter_reserve(tamis_meter *meter, const tamis_amount *amount, uint64_t *reservation);
meter_reserve = bind("tamis_meter_reserve", status, c_void_p, POINTER(Amount), POINTER(c_uint64))

# tamis_status tamis_meter_settle(tamis_meter *meter, uint64_t reservation, const tamis_amount *actual);
meter_settle = bind("tamis_meter_settle", status, c_void_p, c_uint64, POINTER(Amount))

# tamis_status tamis_meter_set_budget(tamis_meter *meter, const tamis_amount *budget);
meter_set_budget = bind("tamis_meter_set_budget", status, c_void_p, POINTER(Amount))

# tamis_status tamis_meter_budget(tamis_meter *meter, tamis_amount *limit, tamis_amount *reserved, tamis_amount
#     *spent);
meter_budget = bind("tamis_meter_budget", status, c_void_p, POINTER(Amount), POINTER(Amount), POINTER(Amount))

# tamis_status tamis_meter_export(tamis_meter *const *meters, size_t count, int32_t format, const
#     tamis_export_options *options, char *text, size_t capacity, size_t *needed);
meter_export = bind("tamis_meter_export", status, POINTER(c_void_p), c_size_t, c_int32, POINTER(ExportOptions),
                    c_char_p, c_size_t, POINTER(c_size_t))

# tamis_status tamis_capture_create(tamis_ctx *ctx, tamis_capture **capture);
capture_create = bind("tamis_capture_create", status, c_void_p, POINTER(c_void_p))

# void tamis_capture_free(tamis_capture *capture);
capture_free = bind("tamis_capture_free", None, c_void_p)

# tamis_status tamis_capture_add(tamis_capture *capture, const tamis_tensor *x, const tamis_tensor *r, const
#     tamis_tensor *attention, const tamis_capture_options *options);
capture_add = bind("tamis_capture_add", status, c_void_p, POINTER(Tensor), POINTER(Tensor), POINTER(Tensor),
                   POINTER(CaptureOptions))

# tamis_status tamis_capture_size(tamis_capture *capture, uint64_t *sequences, uint64_t *rows, uint64_t *bytes);
capture_size = bind("tamis_capture_size", status, c_void_p, POINTER(c_uint64), POINTER(c_uint64), POINTER(c_uint64))

# tamis_status tamis_indexer_create(tamis_ctx *ctx, const tamis_indexer_options *options, tamis_indexer **indexer);
indexer_create = bind("tamis_indexer_create", status, c_void_p, POINTER(IndexerOptions), POINTER(c_void_p))

# void tamis_indexer_free(tamis_indexer *indexer);
indexer_free = bind("tamis_indexer_free", None, c_void_p)

# tamis_status tamis_indexer_load(tamis_ctx *ctx, const char *path, const char *prefix, const tamis_indexer_options
#     *options, tamis_indexer **indexer);
indexer_load = bind("tamis_indexer_load", status, c_void_p, c_char_p, c_char_p, POINTER(IndexerOptions),
                    POINTER(c_void_p))

# tamis_status tamis_indexer_save(tamis_indexer *const *indexers, const char *const *prefixes, size_t count, const
#     char *path);
indexer_save = bind("tamis_indexer_save", status, POINTER(c_void_p), POINTER(c_char_p), c_size_t, c_char_p)

# tamis_status tamis_indexer_info(tamis_indexer *indexer, tamis_indexer_options *options);
indexer_info = bind("tamis_indexer_info", status, c_void_p, POINTER(IndexerOptions))

# tamis_status tamis_indexer_project(tamis_indexer *indexer, const tamis_tensor *x, const tamis_tensor *r, const
#     int32_t *positions, const tamis_tensor *q, const tamis_tensor *w, const tamis_tensor *key);
indexer_project = bind("tamis_indexer_project", status, c_void_p, POINTER(Tensor), POINTER(Tensor), POINTER(c_int32),
                       POINTER(Tensor), POINTER(Tensor), POINTER(Tensor))

# tamis_status tamis_indexer_fit(tamis_indexer *indexer, tamis_capture *capture, const tamis_fit_options *options,
#     tamis_fit_report *report);
indexer_fit = bind("tamis_indexer_fit", status, c_void_p, c_void_p, POINTER(FitOptions), POINTER(FitReport))

# tamis_status tamis_indexer_diagnose(tamis_indexer *indexer, tamis_capture *capture, const tamis_diagnosis_options
#     *options, tamis_mass_at *at, size_t count, tamis_diagnosis *diagnosis);
indexer_diagnose = bind("tamis_indexer_diagnose", status, c_void_p, c_void_p, POINTER(DiagnosisOptions),
                        POINTER(MassAt), c_size_t, POINTER(Diagnosis))

# tamis_status tamis_diagnosis_text(const tamis_diagnosis *diagnosis, const tamis_mass_at *at, size_t count, char
#     *text, size_t capacity, size_t *needed);
diagnosis_text = bind("tamis_diagnosis_text", status, POINTER(Diagnosis), POINTER(MassAt), c_size_t, c_char_p,
                      c_size_t, POINTER(c_size_t))

# tamis_status tamis_scheduler_create(tamis_model *model, tamis_cache *cache, const tamis_scheduler_options
#     *options, tamis_scheduler **scheduler);
scheduler_create = bind("tamis_scheduler_create", status, c_void_p, c_void_p, POINTER(SchedulerOptions),
                        POINTER(c_void_p))

# void tamis_scheduler_free(tamis_scheduler *scheduler);
scheduler_free = bind("tamis_scheduler_free", None, c_void_p)

# tamis_status tamis_scheduler_submit(tamis_scheduler *scheduler, const int32_t *tokens, size_t count, const
#     tamis_submit_options *options, uint64_t *request);
scheduler_submit = bind("tamis_scheduler_submit", status, c_void_p, POINTER(c_int32), c_size_t,
                        POINTER(SubmitOptions), POINTER(c_uint64))

# tamis_status tamis_scheduler_cancel(tamis_scheduler *scheduler, uint64_t request);
scheduler_cancel = bind("tamis_scheduler_cancel", status, c_void_p, c_uint64)

# tamis_status tamis_scheduler_step(tamis_scheduler *scheduler, uint64_t *left);
scheduler_step = bind("tamis_scheduler_step", status, c_void_p, POINTER(c_uint64))

# tamis_status tamis_scheduler_next(tamis_scheduler *scheduler, tamis_served *served);
scheduler_next = bind("tamis_scheduler_next", status, c_void_p, POINTER(Served))

# tamis_status tamis_scheduler_read_stats(tamis_scheduler *scheduler, tamis_scheduler_stats *stats);
scheduler_read_stats = bind("tamis_scheduler_read_stats", status, c_void_p, POINTER(SchedulerStats))
