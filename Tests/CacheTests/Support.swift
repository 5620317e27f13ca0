// What the tests of this room share: tensors of random numbers in any dtype, the operators over flat tensors to
// compare with.

import TamisCache
import TamisOperators
import TamisReference
import TamisRuntime
import TamisTestSupport

/// Memory and a view of it. Tensors hold no reference, so the memory lives until the process ends.
struct Held: @unchecked Sendable {
  let tensor: Tensor
  let bytes: Int

  init(_ dtype: DType, _ shape: [Int]) throws {
    let rows = shape[0]
    let count = shape.reduce(1, *)
    switch dtype {
    case .mla656: bytes = rows * MLA656.bytes
    case .index132: bytes = (rows + 63) / 64 * 64 * Index132.bytes
    default: bytes = count * dtype.bytes
    }
    let data = UnsafeMutableRawPointer.allocate(byteCount: max(bytes, 64), alignment: 64)
    data.initializeMemory(as: UInt8.self, repeating: 0xff, count: max(bytes, 64))
    var scale: UnsafeMutablePointer<Float>?
    if dtype.isScaled {
      scale = .allocate(capacity: max(count / (shape.last ?? 1), 1))
    }
    var axes = SIMD4<Int>(repeating: 0)
    for (axis, size) in shape.enumerated() { axes[axis] = size }
    tensor = try Tensor(
      "test", data: data, dtype: dtype.rawValue, rank: shape.count, shape: axes, stride: SIMD4(repeating: 0),
      scale: scale, block: 0)
  }

  /// F32, normal.
  static func random(_ shape: [Int], _ numbers: inout SplitMix64) throws -> Held {
    let held = try Held(.f32, shape)
    for i in 0..<held.tensor.count { held.floats[i] = Float(numbers.normal()) }
    return held
  }

  /// The same numbers as the operators quantise them, E4M3 with powers of two as in caches.
  func converted(_ dtype: DType, _ context: Context) throws -> Held {
    let held = try Held(dtype, (0..<tensor.rank).map { tensor.shape[$0] })
    try Quantize.run(context, x: tensor, how: Quantization(powerOfTwo: true, hadamard: false), out: held.tensor)
    return held
  }

  /// Rows a ..< b of the first axis (not INDEX132).
  func rows(_ range: Range<Int>) throws -> Tensor {
    var shape = tensor.shape
    shape[0] = range.count
    let perRow = tensor.rank == 3 ? tensor.shape[1] : 1
    return try Tensor(
      "rows", data: tensor.row(range.lowerBound), dtype: tensor.dtype.rawValue, rank: tensor.rank, shape: shape,
      stride: SIMD4(repeating: 0), scale: tensor.scale.map { $0 + range.lowerBound * perRow }, block: 0)
  }

  var floats: UnsafeMutablePointer<Float> { tensor.data.assumingMemoryBound(to: Float.self) }
  var contents: [UInt8] { Array(UnsafeRawBufferPointer(start: tensor.data, count: bytes)) }
  var values: [Float] { (0..<bytes / 4).map { floats[$0] } }
  var integers: [Int32] {
    (0..<bytes / 4).map { tensor.data.assumingMemoryBound(to: Int32.self)[$0] }
  }
}

/// What a select or an attend writes, as bits.
struct Outcome: Equatable {
  var indices: [Int32] = []
  var scores: [UInt8] = []
  var out: [UInt8] = []
  var lse: [UInt8] = []

  /// The outcomes of consecutive query rows as one.
  static func + (a: Outcome, b: Outcome) -> Outcome {
    Outcome(indices: a.indices + b.indices, scores: a.scores + b.scores, out: a.out + b.out, lse: a.lse + b.lse)
  }
}

/// Queries for select (q, w) and attend (heads).
struct Queries {
  let index: Held  // [n, h, indexDim]
  let weights: Held  // [n, h]
  let main: Held  // [n, heads, keyDim]
  let sink: Held  // [heads]

  init(_ n: Int, _ options: CacheOptions, indexHeads: Int, heads: Int, _ numbers: inout SplitMix64) throws {
    index = try .random([n, indexHeads, options.indexDim], &numbers)
    weights = try .random([n, indexHeads], &numbers)
    main = try .random([n, heads, options.keyDim], &numbers)
    sink = try .random([heads], &numbers)
  }
}

/// One layer's keys outside any cache.
struct Flat {
  let key: Held  // [m, kvHeads, keyDim] or MLA656
  let value: Held?  // [m, kvHeads, valueDim] where a cache has own values
  let indexKey: Held?  // [m, indexDim]

  /// The first m rows of `rows` in the cache's dtypes.
  init(_ rows: Rows32, _ m: Int, _ options: CacheOptions, _ context: Context) throws {
    key = try Held.copy(rows.key, m).converted(options.kvDType, context)
    value = options.ownValues ? try Held.copy(rows.value, m).converted(options.kvDType, context) : nil
    indexKey = try options.indexDType.map { try Held.copy(rows.indexKey, m).converted($0, context) }
  }

  /// Selects and attends for the rows `range` of the queries, being the last of the m positions.
  func run(
    _ context: Context, _ options: CacheOptions, _ queries: Queries, _ range: Range<Int>, k: Int, dense: Bool = false
  ) throws -> Outcome {
    let n = range.count
    let m = key.tensor.shape[0]
    var outcome = Outcome()
    var chosen: Held?
    let visible = try Visible(counts: nil, all: false, queries: n, keys: m)
    if let indexKey, !dense {
      let rows = Rows(indexKey.tensor)
      let indexer = try Indexer(
        context, q: queries.index.rows(range), w: queries.weights.rows(range), keyDType: indexKey.tensor.dtype,
        keyDim: options.indexDim, keyScaleBlock: rows.scaleBlock)
      let (indices, scores) = (try Held(.i32, [n, k]), try Held(.f32, [n, k]))
      try Select.run(
        context, indexer, jobs: [IndexJob(keys: rows, firstQuery: 0, queries: n, visible: visible)], k: k,
        indices: indices.tensor, topScores: scores.tensor)
      outcome.indices = indices.integers
      outcome.scores = scores.contents
      chosen = indices
    }
    let q = try queries.main.rows(range)
    let shape = try Attention(
      context, q: q, kvHeads: options.kvHeads, keyDim: options.keyDim, valueDim: options.valueDim,
      keyDType: options.kvDType, scale: 0, sink: queries.sink.floats)
    let (out, lse) = try (Held(.f32, [n, q.shape[1], options.valueDim]), Held(.f32, [n, q.shape[1]]))
    let job = AttendJob(
      keys: Rows(key.tensor), values: value.map { Rows($0.tensor) }, firstQuery: 0, queries: n, visible: visible)
    try Attend.run(
      context, shape, q: q, jobs: [job], indices: chosen?.tensor, out: out.tensor, lse: lse.tensor)
    outcome.out = out.contents
    outcome.lse = lse.contents
    return outcome
  }
}

extension Held {
  /// The first m rows of an F32 tensor.
  static func copy(_ source: Held, _ m: Int) throws -> Held {
    var shape = (0..<source.tensor.rank).map { source.tensor.shape[$0] }
    shape[0] = m
    let held = try Held(.f32, shape)
    held.tensor.data.copyMemory(from: source.tensor.data, byteCount: held.bytes)
    return held
  }
}

/// One layer's rows in F32.
struct Rows32 {
  let key: Held
  let value: Held
  let indexKey: Held

  init(_ m: Int, _ options: CacheOptions, _ numbers: inout SplitMix64) throws {
    let flat = options.kvHeads == 1 && options.kvDType == .mla656
    key = try .random(flat ? [m, options.keyDim] : [m, options.kvHeads, options.keyDim], &numbers)
    value = try .random([m, options.kvHeads, options.valueDim], &numbers)
    indexKey = try .random([m, options.indexDim], &numbers)
  }
}

extension TokenSequence {
  /// Rows `range` of the source to the same positions here.
  func write(_ rows: Rows32, _ range: Range<Int>, layer: Int = 0) throws {
    let options = cache.options
    try write(
      layer: layer, first: Int64(range.lowerBound), key: rows.key.rows(range),
      value: options.ownValues ? rows.value.rows(range) : nil,
      indexKey: options.indexDType == nil ? nil : rows.indexKey.rows(range))
  }

  func append(_ rows: Rows32, _ range: Range<Int>, layer: Int = 0) throws {
    try extend(nil, range.count)
    try write(rows, range, layer: layer)
  }
}

/// The same as Flat.run over the last rows of sequences; `range` of the queries is all of them in order.
func run(
  _ sequences: [TokenSequence], rows: [Int], _ queries: Queries, _ range: Range<Int>, k: Int, layer: Int = 0,
  dense: Bool = false
) throws -> Outcome {
  let cache = sequences[0].cache
  let n = range.count
  let counts = rows.map { Int32($0) }
  var outcome = Outcome()
  var chosen: Held?
  if cache.options.indexDType != nil, !dense {
    let indexer = try cache.indexer(q: queries.index.rows(range), w: queries.weights.rows(range))
    let (indices, scores) = (try Held(.i32, [n, k]), try Held(.f32, [n, k]))
    try Batch.select(
      sequences, rows: counts, layer: layer, indexer, n: n, indices: indices.tensor, topScores: scores.tensor)
    outcome.indices = indices.integers
    outcome.scores = scores.contents
    chosen = indices
  }
  let q = try queries.main.rows(range)
  let shape = try cache.attention(q: q, scale: 0, sink: queries.sink.floats)
  let (out, lse) = try (Held(.f32, [n, q.shape[1], cache.options.valueDim]), Held(.f32, [n, q.shape[1]]))
  try Batch.attend(
    sequences, rows: counts, layer: layer, shape, q: q, indices: chosen?.tensor, out: out.tensor, lse: lse.tensor)
  outcome.out = out.contents
  outcome.lse = lse.contents
  return outcome
}
