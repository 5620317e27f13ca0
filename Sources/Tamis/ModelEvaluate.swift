// Sections 6.2 and 6.3 of the header: evaluation, sampling and traces.

public import CTamis
import TamisCache
import TamisModel
import TamisOperators
import TamisRuntime

// MARK: 6.2 evaluate

@_cdecl("tamis_model_eval") @implementation
public func tamis_model_eval(
  _ model: OpaquePointer?, _ seqs: UnsafePointer<OpaquePointer?>?, _ tokens: UnsafePointer<Int32>?,
  _ counts: UnsafePointer<Int32>?, _ count: Int, _ options: UnsafePointer<tamis_eval_options>?,
  _ logits: UnsafePointer<tamis_tensor>?
) -> tamis_status {
  boundary("tamis_model_eval") { () throws(TamisError) in
    let model: TextModel = try object(model, "model")
    let sequences = try sequences(seqs, count)
    let counts = try rowCounts(counts, "counts")
    var total = 0
    for i in 0..<count {
      guard counts[i] >= 1 else { throw TamisError(.argument, "counts[\(i)] is \(counts[i]), expected at least 1") }
      total = try Size.sum(total, Int(counts[i]))
    }
    guard let tokens = try ids(tokens, total) else { throw TamisError(.argument, "tokens is NULL") }
    let given = try Tamis.options(options, defaults: tamis_eval_options())
    let logits = try Tensor.optional(logits, "logits")
    if let logits { try requireApart(logits, "logits", from: (tokenView(tokens, total), "tokens")) }
    var requests: [Request] = []
    var first = 0
    for i in 0..<count {
      let rows = UnsafeBufferPointer(start: tokens + first, count: Int(counts[i]))
      requests.append(Request(sequences[i], rows, trace: try trace(given.traces, i)))
      first &+= rows.count
    }
    try model.decoder.evaluate(requests, evaluateOptions(given), logits: logits)
  }
}

private func tokenView(_ tokens: UnsafePointer<Int32>, _ count: Int) throws(TamisError) -> Tensor {
  try Tensor(
    "tokens", data: UnsafeMutableRawPointer(mutating: tokens), dtype: DType.i32.rawValue, rank: 1,
    shape: SIMD4(count, 0, 0, 0), stride: SIMD4(repeating: 0), scale: nil, block: 0)
}

/// The trace of one sequence, or nil.
func trace(_ traces: UnsafePointer<OpaquePointer?>?, _ number: Int) throws(TamisError) -> AttentionTrace? {
  guard let traces else { return nil }
  guard UInt(bitPattern: traces) % UInt(MemoryLayout<OpaquePointer>.alignment) == 0 else {
    throw TamisError(.argument, "options: traces is not aligned to \(MemoryLayout<OpaquePointer>.alignment) bytes")
  }
  return traces[number] == nil ? nil : try object(traces[number], "traces")
}

func evaluateOptions(_ given: tamis_eval_options) throws(TamisError) -> EvaluateOptions {
  var wanted = EvaluateOptions(rows: given.all_logits != 0 ? .all : .last)
  switch Int(given.attention) {
  case TAMIS_ATTENTION_AUTOMATIC: wanted.attention = .automatic
  case TAMIS_ATTENTION_DENSE: wanted.attention = .dense
  case TAMIS_ATTENTION_SPARSE: wanted.attention = .sparse
  default: throw TamisError(.argument, "options: attention \(given.attention) is no TAMIS_ATTENTION_ value")
  }
  if given.top_k != 0 { wanted.topK = Int(truncatingIfNeeded: given.top_k) }
  if let selected = given.selected { wanted.selection = SelectionHook(selected, user: given.user) }
  return wanted
}

@_cdecl("tamis_sample") @implementation
public func tamis_sample(
  _ ctx: OpaquePointer?, _ logits: UnsafePointer<tamis_tensor>?, _ options: UnsafePointer<tamis_sampler_options>?,
  _ draws: UInt64, _ token: UnsafeMutablePointer<Int32>?
) -> tamis_status {
  boundary("tamis_sample") { () throws(TamisError) in
    let context = try context(ctx)
    let logits = try Tensor(logits, "logits")
    try require(logits, "logits", .f32)
    guard logits.rank == 1 || (logits.rank == 2 && logits.shape[0] == 1) else {
      throw TamisError(.argument, "logits: expected [vocabulary] or [1, vocabulary]")
    }
    let wanted = try samplerOptions(Tamis.options(options, defaults: tamis_sampler_options()))
    let token = try required(token, "token")
    try requireAligned(token, "token")
    let row = UnsafeBufferPointer(
      start: UnsafePointer(logits.data.assumingMemoryBound(to: Float.self)), count: logits.shape[logits.rank &- 1])
    token.pointee = try Sampler.next(context, row, wanted, draws: draws)
  }
}

func samplerOptions(_ given: tamis_sampler_options) -> SamplerOptions {
  var wanted = SamplerOptions()
  wanted.temperature = given.temperature
  wanted.topK = Int(truncatingIfNeeded: given.top_k)
  if given.top_p != 0 { wanted.topP = given.top_p }
  wanted.seed = given.seed
  return wanted
}

// MARK: 6.3 trace

@_cdecl("tamis_trace_create") @implementation
public func tamis_trace_create(
  _ ctx: OpaquePointer?, _ bounds: UnsafePointer<Int64>?, _ count: Int, _ layers: UInt32,
  _ trace: UnsafeMutablePointer<OpaquePointer?>?
) -> tamis_status {
  boundary("tamis_trace_create") { () throws(TamisError) in
    let context: Context = try object(ctx, "ctx")
    guard let bounds else { throw TamisError(.argument, "bounds is NULL") }
    guard UInt(bitPattern: bounds) % UInt(MemoryLayout<Int64>.alignment) == 0 else {
      throw TamisError(.argument, "bounds is not aligned to 8 bytes")
    }
    guard count >= 1, count <= Int(Int32.max) else {
      throw TamisError(.argument, "count is \(UInt(bitPattern: count)), expected 1 to 2^31-1")
    }
    let trace = try required(trace, "trace")
    let spans = UnsafeBufferPointer(start: bounds, count: 2 &* count)
    trace.pointee = handle(try AttentionTrace(context, bounds: spans, layers: Int(truncatingIfNeeded: layers)))
  }
}

@_cdecl("tamis_trace_free") @implementation
public func tamis_trace_free(_ trace: OpaquePointer?) { drop(trace, AttentionTrace.self) }

@_cdecl("tamis_trace_read") @implementation
public func tamis_trace_read(
  _ trace: OpaquePointer?, _ mass: UnsafeMutablePointer<Double>?, _ tokens: UnsafeMutablePointer<UInt64>?
) -> tamis_status {
  boundary("tamis_trace_read") { () throws(TamisError) in
    let trace: AttentionTrace = try object(trace, "trace")
    try requireAligned(mass, "mass")
    try requireAligned(tokens, "tokens")
    let rows = try trace.read(to: mass)
    tokens?.pointee = rows
  }
}

@_cdecl("tamis_trace_clear") @implementation
public func tamis_trace_clear(_ trace: OpaquePointer?) -> tamis_status {
  boundary("tamis_trace_clear") { () throws(TamisError) in
    let trace: AttentionTrace = try object(trace, "trace")
    try trace.clear()
  }
}
