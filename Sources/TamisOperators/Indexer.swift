// Owns the first verb, index: which arithmetic a pair of dtypes means, how one query row is packed for the kernels,
// and how a run of keys is scored wherever it lies. Select and index_scores are built on it.

import TamisKernels
package import TamisRuntime

/// The checked inputs q [n, h, d] and w [n, h] of an indexer over keys of one dtype.
package struct Indexer {
  let kernels: UnsafePointer<tk_table>
  let q: Tensor
  let w: Tensor
  /// TK_I8, TK_BF16, TK_F32 or TK_E4M3: decided by the keys.
  let type: Int32
  /// F16 keys are widened to float tile by tile.
  let widens: Bool
  let queries: Int
  let heads: Int
  let dim: Int

  /// `keys`: dtype and width of the index keys.
  package init(
    _ context: Context, q: Tensor, w: Tensor, keyDType: DType, keyDim: Int, keyScaleBlock: Int
  ) throws(TamisError) {
    try require(q, "q", rank: 3)
    try require(w, "w", rank: 2)
    try require(q, "q", .f32, .f16, .bf16, .i8, .f8e4m3)
    try require(w, "w", .f32)
    try require(w, "w", axis: 0, is: q.shape[0])
    try require(w, "w", axis: 1, is: q.shape[1])
    guard q.shape[1] >= 1, q.shape[2] >= 1 else { throw TamisError(.argument, "q: no heads or no dims") }
    guard q.shape[1] <= Indexer.largest, q.shape[2] <= Indexer.largest else {
      throw TamisError(.unsupported, "q: more than \(Indexer.largest) heads or dims")
    }
    guard keyDim == q.shape[2] else {
      throw TamisError(.argument, "key: \(keyDim) dims, expected \(q.shape[2]) as in q")
    }
    if keyDType.isScaled || keyDType == .index132 {
      guard keyScaleBlock >= keyDim else {
        throw TamisError(.unsupported, "key: index keys have one scale each (block 0 or \(keyDim))")
      }
    }
    switch keyDType {
    case .i8: type = Int32(TK_I8)
    case .f8e4m3, .index132: type = Int32(TK_E4M3)
    case .bf16: type = Int32(TK_BF16)
    case .f16, .f32: type = Int32(TK_F32)
    default: throw TamisError(.argument, "key: dtype \(keyDType.name) is not accepted here")
    }
    if q.dtype.isScaled {
      guard (q.dtype == .i8) == (keyDType == .i8), keyDType == .i8 || type == Int32(TK_E4M3) else {
        throw TamisError(.unsupported, "q: \(q.dtype.name) queries need keys of the same kind")
      }
      guard q.block >= q.shape[2] else {
        throw TamisError(.unsupported, "q: 8-bit queries have one scale for each row and head (block 0)")
      }
    }
    kernels = context.kernels
    self.q = q
    self.w = w
    widens = keyDType == .f16
    queries = q.shape[0]
    heads = q.shape[1]
    dim = q.shape[2]
  }

  /// Heads and dims stay far inside int32 arithmetic.
  static let largest = 1 << 16

  var packedBytes: Int {
    kernels.pointee.index_query_bytes(type, Int32(truncatingIfNeeded: heads), Int32(truncatingIfNeeded: dim))
  }

  /// Scratch for `pack`: one row as floats, as operands, and its weights.
  func packScratchBytes() throws(TamisError) -> Int {
    try Size.roundUp(Size.sum(Size.product(heads, dim, 8), Size.product(heads, 4), 192), to: 64)
  }

  /// Scratch for `score`: a tile of widened keys.
  func widenBytes(tile: Int) throws(TamisError) -> Int { widens ? try Size.product(tile, dim, 4) : 0 }

  /// Packs query row `row`; every scale is folded into the weights (it commutes with max(0, .)).
  func pack(_ row: Int, to packed: UnsafeMutableRawPointer, scratch: UnsafeMutableRawPointer) {
    let floats = scratch.assumingMemoryBound(to: Float.self)
    let operands = scratch + (heads &* dim &* 4 &+ 63) / 64 &* 64
    let weights = (operands + (heads &* dim &* 4 &+ 63) / 64 &* 64).assumingMemoryBound(to: Float.self)
    let source = w.row(row).assumingMemoryBound(to: Float.self)
    for head in 0..<heads {
      let from = UnsafeRawPointer(q.row(row) + head &* q.stride[1])
      var scale: Float = 1
      if q.dtype.isScaled {
        scale = q.scale.map { $0[row &* heads &+ head] } ?? 1
        if q.dtype == .i8 {
          (operands + head &* dim).copyMemory(from: from, byteCount: dim)
        } else {
          kernels.pointee.bf16_from_e4m3(
            from.assumingMemoryBound(to: UInt8.self), nil, Int64(dim), Int64(dim),
            (operands + head &* dim &* 2).assumingMemoryBound(to: UInt16.self))
        }
      } else if type == Int32(TK_I8) {
        loadFloats(q.dtype, from, nil, dim, dim, to: floats, kernels)
        scale = kernels.pointee.i8_from_f32(
          floats, Int64(dim), (operands + head &* dim).assumingMemoryBound(to: Int8.self))
      } else if type == Int32(TK_F32) {
        loadFloats(
          q.dtype, from, nil, dim, dim, to: (operands + head &* dim &* 4).assumingMemoryBound(to: Float.self), kernels)
      } else if q.dtype == .bf16 {
        (operands + head &* dim &* 2).copyMemory(from: from, byteCount: dim &* 2)
      } else {
        loadFloats(q.dtype, from, nil, dim, dim, to: floats, kernels)
        kernels.pointee.bf16_from_f32(
          floats, Int64(dim), (operands + head &* dim &* 2).assumingMemoryBound(to: UInt16.self))
      }
      weights[head] = source[head] * scale
    }
    kernels.pointee.index_pack_query(
      type, operands, weights, Int32(truncatingIfNeeded: heads), Int32(truncatingIfNeeded: dim), packed)
  }

  /// scores [n] of keys first ..< first + n for one packed query. `fresh`: nobody has read these keys just now, so
  /// each run of them is asked for while the one before it is scored.
  @inline(never)  // one copy, whoever calls
  func score(
    _ packed: UnsafeRawPointer, _ keys: Rows, first: Int, count: Int, fresh: Bool,
    to scores: UnsafeMutablePointer<Float>
  ) {
    var s = first
    let end = first &+ count
    while s < end {
      let n = min(end, keys.endOfPage(s)) &- s
      var beside = tk_beside(next: nil, asked: !fresh || s > 0 ? 1 : 0)
      if fresh, s &+ n < keys.count { beside.next = keys.row(s &+ n) }
      kernels.pointee.index_scores(
        type, packed, Int32(truncatingIfNeeded: heads), Int32(truncatingIfNeeded: dim), keys.row(s), keys.stride,
        keys.rowScale(s), keys.scaleStride, Int32(truncatingIfNeeded: n), &beside, scores + (s &- first))
      s &+= n
    }
  }

  /// The keys first ..< first + n as a run of floats in `tile` (F16 keys), or the keys themselves.
  func widened(_ keys: Rows, first: Int, count: Int, tile: UnsafeMutableRawPointer) -> (Rows, Int) {
    guard widens else { return (keys, first) }
    let floats = tile.assumingMemoryBound(to: Float.self)
    for i in 0..<count {
      loadFloats(.f16, keys.row(first &+ i), nil, dim, dim, to: floats + i &* dim, kernels)
    }
    return (
      Rows(
        dtype: .f32, count: count, elements: dim, base: UnsafeRawPointer(tile), table: nil, pageTokens: 1 &<< 62,
        pageStride: 0, offset: 0, stride: dim &* 4, scaleOffset: nil, scaleStride: 0, scaleBlock: 0), 0
    )
  }

  /// The definition's arithmetic for one (query, key) pair: h dot products, ReLU and weight not counted.
  var flopsPerKey: Int { 2 &* heads &* dim }
}

/// One run of query rows over one set of keys: a call has one, a batch one for each sequence.
package struct IndexJob {
  package let keys: Rows
  package let firstQuery: Int
  package let queries: Int
  package let visible: Visible

  package init(keys: Rows, firstQuery: Int, queries: Int, visible: Visible) {
    self.keys = keys
    self.firstQuery = firstQuery
    self.queries = queries
    self.visible = visible
  }
}
