// What a host model gives to a fit: for each sequence its hidden states, query features of some rows, and the attention
// of those rows, either as probabilities or as queries and keys from which they are computed when they are needed. It
// refuses numbers that are not finite and attention rows that do not sum to one, and keeps nothing of the caller's.

import Glibc
package import TamisOperators
package import TamisRuntime

/// One sequence of a host, as given. Any of F32, F16, BF16.
package struct CaptureInput {
  /// x [tokens, width], of positions 0, 1, ...
  package var hidden: Tensor
  /// r [rows, features]; nil: the hidden states of the rows.
  package var features: Tensor?
  /// [rows, tokens], or [heads, rows, tokens], which is averaged over heads.
  package var attention: Tensor?
  /// [rows, heads, dim] and [tokens, key heads, dim]; softmax scale of their products.
  package var queries: Tensor?
  package var keys: Tensor?
  package var softmaxScale: Float = 0
  /// The positions of the rows; nil: row i is position i.
  package var positions: UnsafePointer<Int32>?
  /// Every row sees every token (an encoder); otherwise those up to its own position.
  package var allVisible = false

  package init(hidden: Tensor) { self.hidden = hidden }
}

/// Queries and keys of the host's heads.
struct HostHeads {
  let heads: Int
  let keyHeads: Int
  let dim: Int
  let scale: Float
  /// [rows, heads, dim]
  let queries: Floats
  /// [key heads] of [dim, keyStride]: transposed, zeros behind the last token.
  let keys: Floats
  let keyStride: Int
}

enum CapturedAttention {
  /// [rows, tokens], each row summing to one over what it sees, zero behind.
  case rows(Floats)
  case heads(HostHeads)
}

struct CapturedSequence {
  let tokens: Int
  let rows: Int
  let allVisible: Bool
  let hidden: Floats  // [tokens, width]
  let features: Floats  // [rows, features]
  let positions: Positions  // [rows]
  let attention: CapturedAttention
  /// [rows]: sum of p log p, the part of the divergence that does not depend on the indexer.
  let entropy: Floats

  func visible(_ row: Int) -> Int { allVisible ? tokens : Int(positions.start[row]) &+ 1 }

  var bytes: Int {
    let attended =
      switch attention {
      case .rows(let rows): rows.bytes
      case .heads(let host): host.queries.bytes &+ host.keys.bytes
      }
    return hidden.bytes &+ features.bytes &+ positions.bytes &+ attended &+ entropy.bytes
  }
}

/// Positions of rows, in a context's memory.
final class Positions: @unchecked Sendable {
  let start: UnsafeMutablePointer<Int32>
  let count: Int
  private let context: Context

  init(_ context: Context, _ count: Int) throws(TamisError) {
    start = try context.allocate(bytes: Size.product(count, 4), alignment: 64, what: "capture")
      .assumingMemoryBound(to: Int32.self)
    self.count = count
    self.context = context
  }

  deinit { context.release(start, bytes: count &* 4) }

  var bytes: Int { count &* 4 }
}

package final class Capture: @unchecked Sendable {
  package let context: Context
  private(set) var sequences: [CapturedSequence] = []
  let busy = BusyFlag()

  static let tokenLimit = 1 << 24
  private static let sequenceLimit = 1 << 20

  package init(_ context: Context) { self.context = context }

  package var count: Int { sequences.count }
  package var rows: Int { sequences.reduce(0) { $0 &+ $1.rows } }

  /// What is held.
  package func size() throws(TamisError) -> (sequences: Int, rows: Int, bytes: Int) {
    try busy.enter("capture")
    defer { busy.leave() }
    return (count, rows, sequences.reduce(0) { $0 &+ $1.bytes })
  }

  /// (width, features) of what was captured; nil while empty.
  package var sizes: (width: Int, features: Int)? {
    sequences.first.map { ($0.hidden.count / max($0.tokens, 1), $0.features.count / max($0.rows, 1)) }
  }

  /// All or nothing.
  package func add(_ input: CaptureInput) throws(TamisError) {
    try busy.enter("capture")
    defer { busy.leave() }
    guard sequences.count < Capture.sequenceLimit else {
      throw TamisError(.full, "capture: holds \(sequences.count) sequences already")
    }
    let rows = try check(input)
    let (tokens, width) = (input.hidden.shape[0], input.hidden.shape[1])
    let hidden = try Floats(context, Size.product(tokens, width), "capture")
    try copy(input.hidden, "x", to: hidden)
    let positions = try copyPositions(input.positions, rows: rows, tokens: tokens)
    let features = try copyFeatures(input.features, hidden, positions, width: width)
    let attention = try copyAttention(input, positions)
    let entropy = try Floats(context, rows, "capture")
    let made = CapturedSequence(
      tokens: tokens, rows: rows, allVisible: input.allVisible, hidden: hidden, features: features,
      positions: positions, attention: attention, entropy: entropy)
    try TargetRows.measureEntropy(context, made)
    sequences.append(made)
  }

  /// Returns the number of rows.
  private func check(_ input: CaptureInput) throws(TamisError) -> Int {
    try require(input.hidden, "x", rank: 2)
    try require(input.hidden, "x", .f32, .f16, .bf16)
    let tokens = input.hidden.shape[0]
    guard (1...Capture.tokenLimit).contains(tokens), input.hidden.shape[1] >= 1 else {
      throw TamisError(.argument, "x: \(tokens) tokens of \(input.hidden.shape[1]) numbers, nothing can be captured")
    }
    let rows = try checkAttention(input, tokens: tokens)
    guard rows >= 1 else { throw TamisError(.argument, "capture: no query rows") }
    if let features = input.features {
      try require(features, "r", rank: 2)
      try require(features, "r", .f32, .f16, .bf16)
      try require(features, "r", axis: 0, is: rows)
      guard features.shape[1] >= 1 else { throw TamisError(.argument, "r: no features") }
    }
    guard input.positions != nil || rows <= tokens else {
      throw TamisError(.argument, "capture: \(rows) rows of \(tokens) tokens and no positions")
    }
    guard let (width, features) = sizes else { return rows }
    let given = input.features?.shape[1] ?? input.hidden.shape[1]
    guard input.hidden.shape[1] == width, given == features else {
      throw TamisError(
        .argument, "capture: x is \(input.hidden.shape[1]) wide and r \(given), expected \(width) and \(features)")
    }
    return rows
  }

  private func checkAttention(_ input: CaptureInput, tokens: Int) throws(TamisError) -> Int {
    if let attention = input.attention {
      guard input.queries == nil, input.keys == nil else {
        throw TamisError(.argument, "capture: give attention, or q and key, not both")
      }
      try require(attention, "attention", .f32, .f16, .bf16)
      guard attention.rank == 2 || (attention.rank == 3 && attention.shape[0] >= 1) else {
        throw TamisError(.argument, "attention: expected [rows, tokens] or [heads, rows, tokens]")
      }
      try require(attention, "attention", axis: attention.rank - 1, is: tokens)
      return attention.shape[attention.rank - 2]
    }
    guard let queries = input.queries, let keys = input.keys else {
      throw TamisError(.argument, "capture: neither attention nor q and key")
    }
    try require(queries, "q", rank: 3)
    try require(keys, "key", rank: 3)
    try require(queries, "q", .f32, .f16, .bf16)
    try require(keys, "key", .f32, .f16, .bf16)
    try require(keys, "key", axis: 0, is: tokens)
    try require(keys, "key", axis: 2, is: queries.shape[2])
    let (heads, keyHeads, dim) = (queries.shape[1], keys.shape[1], queries.shape[2])
    guard heads >= 1, heads <= 1 << 12, keyHeads >= 1, heads % keyHeads == 0, dim >= 1, dim <= 1 << 16 else {
      throw TamisError(.argument, "q: \(heads) heads of \(dim) over \(keyHeads) key heads")
    }
    guard input.softmaxScale.isFinite, input.softmaxScale >= 0 else {
      throw TamisError(.argument, "capture: softmax_scale is \(input.softmaxScale)")
    }
    return queries.shape[0]
  }

  private func copyPositions(
    _ given: UnsafePointer<Int32>?, rows: Int, tokens: Int
  ) throws(TamisError) -> Positions {
    let positions = try Positions(context, rows)
    for row in 0..<max(rows, 0) {
      let position = given?[row] ?? Int32(truncatingIfNeeded: row)
      guard position >= 0, position < tokens else {
        throw TamisError(.argument, "capture: rows[\(row)] is position \(position) of \(tokens)")
      }
      positions.start[row] = position
    }
    return positions
  }

  private func copyFeatures(
    _ given: Tensor?, _ hidden: Floats, _ positions: Positions, width: Int
  ) throws(TamisError) -> Floats {
    if let given {
      let features = try Floats(context, Size.product(given.shape[0], given.shape[1]), "capture")
      try copy(given, "r", to: features)
      return features
    }
    let features = try Floats(context, Size.product(positions.count, width), "capture")
    for row in 0..<positions.count {
      (features.start + row &* width).update(
        from: hidden.start + Int(positions.start[row]) &* width, count: width)
    }
    return features
  }

  private func copyAttention(
    _ input: CaptureInput, _ positions: Positions
  ) throws(TamisError) -> CapturedAttention {
    let tokens = input.hidden.shape[0]
    if let attention = input.attention {
      return .rows(
        try AttentionRows.copied(
          context, attention, positions, tokens: tokens, allVisible: input.allVisible))
    }
    guard let given = input.queries, let givenKeys = input.keys else {
      throw TamisError(.argument, "capture: neither attention nor q and key")
    }
    let (heads, keyHeads, dim) = (given.shape[1], givenKeys.shape[1], given.shape[2])
    let queries = try Floats(context, Size.product(positions.count, heads, dim), "capture")
    try copy(given, "q", to: queries)
    let plain = try Floats(context, Size.product(tokens, keyHeads, dim), "capture")
    try copy(givenKeys, "key", to: plain)
    let stride = paddedStride(tokens)
    let keys = try Floats(context, Size.product(keyHeads, dim, stride), "capture")
    keys.clear()
    for token in 0..<tokens {
      for element in 0..<keyHeads &* dim {
        keys.start[element &* stride &+ token] = plain.start[token &* keyHeads &* dim &+ element]
      }
    }
    let scale = input.softmaxScale == 0 ? 1 / Float(dim).squareRoot() : input.softmaxScale
    return .heads(
      HostHeads(
        heads: heads, keyHeads: keyHeads, dim: dim, scale: scale, queries: queries, keys: keys, keyStride: stride))
  }

  /// Row-major floats of a tensor of rank 2 or 3, all finite.
  private func copy(_ tensor: Tensor, _ name: StaticString, to floats: Floats) throws(TamisError) {
    let middle = tensor.rank == 3 ? tensor.shape[1] : 1
    let columns = tensor.columns
    for row in 0..<max(tensor.shape[0], 0) {
      for part in 0..<max(middle, 0) {
        let from = tensor.row(row) + part &* (tensor.rank == 3 ? tensor.stride[1] : 0)
        let to = floats.start + (row &* middle &+ part) &* columns
        loadFloats(tensor.dtype, from, nil, 1, columns, to: to, context.kernels)
        guard isFinite(to, columns) else {
          throw TamisError(.argument, "\(name): row \(row) contains NaN or infinity")
        }
      }
    }
  }
}

/// Floats from one row of scores to the next: whole vectors, and never a power of two, whose rows would meet in the
/// same few lines of a cache.
func paddedStride(_ count: Int) -> Int { ((count &+ 15) & ~15) &+ 16 }
