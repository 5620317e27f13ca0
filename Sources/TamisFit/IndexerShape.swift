// The sizes of an indexer to be learnt, and where each parameter lies in one block of floats. All matrices are kept
// transposed against the checkpoint's layout ([in, out]), because the products of a fit want outputs in lanes; so are
// their gradients, and one pass of Adam runs over everything. It refuses sizes that the kernels' tiles do not have.

package import TamisRuntime

package struct IndexerShape: Equatable, Sendable {
  /// Of the hidden state x, from which keys and head weights are made.
  package let width: Int
  /// Of the query feature r, from which queries are made.
  package let features: Int
  package let heads: Int
  package let dim: Int
  /// The first dims of queries and keys turn with the position: pairs (i, i + rope / 2).
  package let rope: Int

  package init(width: Int, features: Int, heads: Int, dim: Int, rope: Int) throws(TamisError) {
    guard (1...1 << 20).contains(width), (1...1 << 20).contains(features) else {
      throw TamisError(.argument, "indexer: width \(width) and features \(features), expected 1 to 2^20")
    }
    guard (1...256).contains(heads) else { throw TamisError(.argument, "indexer: \(heads) heads, expected 1 to 256") }
    guard (16...512).contains(dim), dim % 16 == 0 else {
      throw TamisError(.argument, "indexer: dim is \(dim), expected a multiple of 16 up to 512")
    }
    guard rope >= 0, rope <= dim, rope % 2 == 0 else {
      throw TamisError(.argument, "indexer: rope_dim is \(rope), expected an even number up to dim, \(dim)")
    }
    self.width = width
    self.features = features
    self.heads = heads
    self.dim = dim
    self.rope = rope
  }

  /// Of all query heads together.
  var queryWidth: Int { heads &* dim }
  /// Head weights are padded to whole vectors; the padding stays zero.
  var paddedHeads: Int { (heads &+ 15) & ~15 }
  /// H^-1/2 D^-1/2, inside the head weights (V3.2's inference code; the softmax of the fit sees it too).
  var weightScale: Float { 1 / (Float(heads) * Float(dim)).squareRoot() }

  // Offsets in the block of parameters: [features, heads * dim], [width, dim], [dim], [dim], [width, padded heads].
  var queryAt: Int { 0 }
  var keyAt: Int { features &* queryWidth }
  var gainAt: Int { keyAt &+ width &* dim }
  var biasAt: Int { gainAt &+ dim }
  var weightAt: Int { biasAt &+ dim }
  var parameters: Int { weightAt &+ width &* paddedHeads }
}

/// The learnable tensors, by their names in DeepSeek-V3.2 checkpoints.
package enum IndexerTensor: CaseIterable, Sendable {
  case query, key, gain, bias, weights

  package var name: StaticString {
    switch self {
    case .query: "wq_b.weight"
    case .key: "wk.weight"
    case .gain: "k_norm.weight"
    case .bias: "k_norm.bias"
    case .weights: "weights_proj.weight"
    }
  }

  /// As in a checkpoint: [out, in].
  package func dimensions(_ shape: IndexerShape) -> [Int] {
    switch self {
    case .query: [shape.queryWidth, shape.features]
    case .key: [shape.dim, shape.width]
    case .gain, .bias: [shape.dim]
    case .weights: [shape.heads, shape.width]
    }
  }

  /// Where the tensor begins in the block of parameters, and the floats from one input to the next.
  func place(_ shape: IndexerShape) -> (at: Int, stride: Int) {
    switch self {
    case .query: (shape.queryAt, shape.queryWidth)
    case .key: (shape.keyAt, shape.dim)
    case .gain: (shape.gainAt, 1)
    case .bias: (shape.biasAt, 1)
    case .weights: (shape.weightAt, shape.paddedHeads)
    }
  }
}
