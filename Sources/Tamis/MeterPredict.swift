// Section 7.2 of the header: architectures and predictions.

public import CTamis
import TamisMeter
import TamisRuntime

// MARK: From the header's structs

/// Zero means DeepSeek-V3.2's.
func architecture(_ pointer: UnsafePointer<tamis_architecture>?) throws(TamisError) -> Architecture {
  let given = try Tamis.options(pointer, defaults: tamis_architecture(), "architecture")
  let usual = try Architecture.deepSeekV32()
  let or = { (value: UInt32, usual: Int) in value == 0 ? usual : Int(value) }
  let layers = or(given.layers, usual.layers)
  let absorbed = Architecture.CoreShape(
    key: or(given.key_dim, usual.absorbed.key), value: or(given.value_dim, usual.absorbed.value))
  let expanded = Architecture.CoreShape(
    key: or(given.expanded_key_dim, given.key_dim == 0 ? usual.expanded.key : absorbed.key),
    value: or(given.expanded_value_dim, given.value_dim == 0 ? usual.expanded.value : absorbed.value))
  let parameters = given.active_parameters == 0 ? usual.activeParameters : given.active_parameters
  let linear = given.attention_only == 0
  // Where the active parameters are DeepSeek-V3.2's, the indexer's projections are, too.
  let index = given.active_parameters == 0 && given.index_parameters == 0 ? usual.indexParameters : given.index_parameters
  return try Architecture(
    name: usual.name, layers: layers, heads: or(given.heads, usual.heads), absorbed: absorbed, expanded: expanded,
    indexer: Architecture.Indexer(
      heads: or(given.index_heads, usual.indexer.heads), dim: or(given.index_dim, usual.indexer.dim),
      topK: or(given.top_k, usual.indexer.topK), layers: or(given.index_layers, layers),
      pooling: or(given.pooling, usual.indexer.pooling),
      keyBytes: given.index_key_bytes == 0 ? usual.indexer.keyBytes : given.index_key_bytes),
    activeParameters: linear ? parameters : 0,
    weightBytes: linear ? (given.weight_bytes == 0 ? parameters : given.weight_bytes) : 0,
    cacheBytes: given.cache_bytes == 0 ? usual.cacheBytes : given.cache_bytes,
    indexParameters: linear ? index : 0, headParameters: linear ? given.head_parameters : 0,
    matrices: linear ? Int(clamping: given.weight_matrices) : 0)
}

func mode(_ number: Int64) throws(TamisError) -> Mode {
  switch number {
  case Int64(TAMIS_MODE_AUTOMATIC): return .automatic
  case Int64(TAMIS_MODE_SPARSE): return .sparse
  case Int64(TAMIS_MODE_DENSE): return .dense
  default: throw TamisError(.argument, "mode: \(number) is no TAMIS_MODE_ value")
  }
}

private func phase(_ number: Int32) throws(TamisError) -> PhaseKind {
  switch Int(number) {
  case TAMIS_PHASE_PREFILL: return .prefill
  case TAMIS_PHASE_DECODE: return .decode
  default: throw TamisError(.argument, "phase: \(number) is no TAMIS_PHASE_ value")
  }
}

func request(_ pointer: UnsafePointer<tamis_request>?) throws(TamisError) -> (Request, Mode) {
  guard pointer != nil else { throw TamisError(.argument, "request is NULL") }
  let given = try Tamis.options(pointer, defaults: tamis_request(), "request")
  let count = { (tokens: UInt64) in Int(exactly: tokens) ?? Int.max }
  let made = try Request(
    input: count(given.input_tokens), cached: count(given.cached_tokens), output: count(given.output_tokens),
    batch: given.batch == 0 ? 1 : Int(given.batch), chunk: given.chunk == 0 ? 512 : Int(given.chunk))
  return (made, try mode(Int64(given.mode)))
}

// MARK: Predictions

@_cdecl("tamis_predict_request") @implementation
public func tamis_predict_request(
  _ machine: OpaquePointer?, _ architecture: UnsafePointer<tamis_architecture>?,
  _ request: UnsafePointer<tamis_request>?, _ prediction: UnsafeMutablePointer<tamis_prediction>?
) -> tamis_status {
  boundary("tamis_predict_request") { () throws(TamisError) in
    let predictor = Predictor(try Tamis.architecture(architecture), on: try profile(machine))
    let (request, mode) = try Tamis.request(request)
    try answer(prediction, predictor.estimate(request, mode))
  }
}

@_cdecl("tamis_predict_token") @implementation
public func tamis_predict_token(
  _ machine: OpaquePointer?, _ architecture: UnsafePointer<tamis_architecture>?, _ phase: Int32, _ mode: Int32,
  _ keys: UInt64, _ prediction: UnsafeMutablePointer<tamis_prediction>?
) -> tamis_status {
  boundary("tamis_predict_token") { () throws(TamisError) in
    let predictor = Predictor(try Tamis.architecture(architecture), on: try profile(machine))
    let estimate = try predictor.estimate(
      at: Int(exactly: keys) ?? Int.max, Tamis.phase(phase), Tamis.mode(Int64(mode)))
    try answer(prediction, estimate)
  }
}

private func answer(_ prediction: UnsafeMutablePointer<tamis_prediction>?, _ estimate: Estimate) throws(TamisError) {
  let prediction = try required(prediction, "prediction")
  let size = try callersSize(prediction, "prediction")
  let filled = tamis_prediction(
    size: UInt32(truncatingIfNeeded: size), basis: estimate.basis.rawValue, seconds: estimate.seconds.mid,
    low_seconds: estimate.seconds.low, high_seconds: estimate.seconds.high,
    prefill_seconds: estimate.prefill.seconds, decode_seconds: estimate.decode.seconds, flops: estimate.total.flops,
    bytes: estimate.total.bytes)
  fill(prediction, size, with: filled)
}

@_cdecl("tamis_predict_break_even") @implementation
public func tamis_predict_break_even(
  _ machine: OpaquePointer?, _ architecture: UnsafePointer<tamis_architecture>?, _ kind: Int32, _ mode: Int32,
  _ tokens: UnsafeMutablePointer<Double>?, _ low: UnsafeMutablePointer<Double>?, _ high: UnsafeMutablePointer<Double>?,
  _ basis: UnsafeMutablePointer<UInt32>?
) -> tamis_status {
  boundary("tamis_predict_break_even") { () throws(TamisError) in
    let predictor = Predictor(try Tamis.architecture(architecture), on: try profile(machine))
    let mode = try Tamis.mode(Int64(mode))
    guard mode != .dense else { throw TamisError(.argument, "mode: dense never beats itself, expected another") }
    let tokens = try required(tokens, "tokens")
    try requireAligned(low, "low")
    try requireAligned(high, "high")
    try requireAligned(basis, "basis")
    let found = predictor.breakEven(try breakEvenKind(kind), mode)
    tokens.pointee = found.mid ?? -1
    low?.pointee = found.low ?? -1
    high?.pointee = found.high ?? -1
    basis?.pointee = found.basis.rawValue
  }
}

private func breakEvenKind(_ number: Int32) throws(TamisError) -> BreakEvenKind {
  switch Int(number) {
  case TAMIS_BREAK_EVEN_DECODE: return .decode
  case TAMIS_BREAK_EVEN_PREFILL: return .prefillMargin
  case TAMIS_BREAK_EVEN_PROMPT: return .wholePrompt
  default: throw TamisError(.argument, "kind: \(number) is no TAMIS_BREAK_EVEN_ value")
  }
}
