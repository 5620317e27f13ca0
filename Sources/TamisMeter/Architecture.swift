// What a model's shape alone says about work: FLOP and bytes for each (query, key) pair and for each token, for any
// member of the DSA family. A multiply and an add count as two. Nothing here knows a machine or a price.

package import TamisRuntime

package struct Architecture: Sendable, Equatable {
  package let name: String
  /// Layers that attend; layers without attention only count in `activeParameters`.
  package let layers: Int
  package let heads: Int
  /// Absorbed (MQA) form, used by decode and by sparse attention: one key and value shared by the heads. For GQA, MQA
  /// and MHA models the two forms are the same.
  package let absorbed: CoreShape
  /// Expanded (MHA) form, used by dense and masked prefill.
  package let expanded: CoreShape
  package let indexer: Indexer
  /// Parameters one token is multiplied with; 2 FLOP each.
  package let activeParameters: Double
  /// Bytes read for one token's linear layers when nothing shares the read.
  package let weightBytes: Double
  /// Bytes of keys and values of one token in one layer.
  package let cacheBytes: Double
  /// Of the indexer's own projections, beside the active ones: a token that scores keys is multiplied with them, too.
  package let indexParameters: Double
  /// Of the active ones, those of the head, which of a prompt only its last token needs; 0: counted for every token.
  package let headParameters: Double
  /// Matrices that the active parameters are in; 0: not known.
  package let matrices: Int

  package struct CoreShape: Sendable, Equatable {
    package let key: Int
    package let value: Int
    package init(key: Int, value: Int) {
      self.key = key
      self.value = value
    }
  }

  package struct Indexer: Sendable, Equatable {
    package let heads: Int
    package let dim: Int
    /// Tokens that stay visible to the core.
    package let topK: Int
    /// Layers that score; the others reuse a selection.
    package let layers: Int
    /// Tokens for which one pooled key stands; 1 in DeepSeek-V3.2.
    package let pooling: Int
    /// Bytes of one index key with its scale.
    package let keyBytes: Double
    package init(heads: Int, dim: Int, topK: Int, layers: Int, pooling: Int = 1, keyBytes: Double) {
      self.heads = heads
      self.dim = dim
      self.topK = topK
      self.layers = layers
      self.pooling = pooling
      self.keyBytes = keyBytes
    }
  }

  package init(
    name: String, layers: Int, heads: Int, absorbed: CoreShape, expanded: CoreShape, indexer: Indexer,
    activeParameters: Double, weightBytes: Double, cacheBytes: Double, indexParameters: Double = 0,
    headParameters: Double = 0, matrices: Int = 0
  ) throws(TamisError) {
    self.name = name
    self.layers = layers
    self.heads = heads
    self.absorbed = absorbed
    self.expanded = expanded
    self.indexer = indexer
    self.activeParameters = activeParameters
    self.weightBytes = weightBytes
    self.cacheBytes = cacheBytes
    self.indexParameters = indexParameters
    self.headParameters = headParameters
    self.matrices = matrices
    try validate()
  }

  private func validate() throws(TamisError) {
    let sizes = [layers, heads, absorbed.key, absorbed.value, expanded.key, expanded.value]
    let indexSizes = [indexer.heads, indexer.dim, indexer.topK, indexer.layers, indexer.pooling]
    guard (sizes + indexSizes).allSatisfy({ $0 > 0 && $0 <= 1 << 24 }) else {
      throw TamisError(.argument, "architecture: a size is out of range, expected 1 to 16777216")
    }
    guard indexer.layers <= layers else {
      throw TamisError(.argument, "architecture: \(indexer.layers) indexer layers, expected at most \(layers)")
    }
    let amounts = [activeParameters, weightBytes, cacheBytes, indexer.keyBytes, indexParameters, headParameters]
    guard amounts.allSatisfy({ $0.isFinite && $0 >= 0 && $0 <= 1e18 }) else {
      throw TamisError(.argument, "architecture: parameters or bytes are out of range, expected 0 to 1e18")
    }
    guard headParameters <= activeParameters else {
      throw TamisError(.argument, "architecture: more parameters in the head than active ones, which include them")
    }
    guard matrices >= 0, matrices <= 1 << 40 else {
      throw TamisError(.argument, "architecture: \(matrices) matrices, expected 0 to 2^40")
    }
  }
}

// MARK: Work per pair and per token, all layers together

extension Architecture {
  package var absorbedFlopsPerPair: Double { coreFlops(absorbed) }
  package var expandedFlopsPerPair: Double { coreFlops(expanded) }
  package var indexFlopsPerPair: Double {
    2 * Double(indexer.heads) * Double(indexer.dim) * Double(indexer.layers) / Double(indexer.pooling)
  }
  package var linearFlopsPerToken: Double { 2 * activeParameters }
  package var indexProjectionFlopsPerToken: Double { 2 * indexParameters }
  /// Held as the active ones are.
  package var indexProjectionBytes: Double {
    activeParameters > 0 ? indexParameters * weightBytes / activeParameters : 0
  }
  /// W_UK and W_UV of all heads with one latent: what a token's own products with them take in the absorbed form, and
  /// making the keys and values of one token in the expanded one. 0 where the two forms are the same.
  package var expansionFlops: Double {
    let nope = expanded.key &- (absorbed.key &- absorbed.value)
    guard expanded != absorbed, absorbed.key >= absorbed.value, nope > 0 else { return 0 }
    return 2 * Double(heads) * Double(absorbed.value) * Double(nope &+ expanded.value) * Double(layers)
  }
  package var cacheBytesPerToken: Double { cacheBytes * Double(layers) }
  package var indexBytesPerToken: Double { indexer.keyBytes * Double(indexer.layers) / Double(indexer.pooling) }

  private func coreFlops(_ shape: CoreShape) -> Double {
    2 * Double(heads) * (Double(shape.key) + Double(shape.value)) * Double(layers)
  }
}

// MARK: Published models

extension Architecture {
  /// DeepSeek-V3.2: 36.62 B active parameters held in FP8, a latent cache of 656 bytes (FP8) for each token and layer.
  /// In each layer the indexer projects 1,536 dims to 64 heads of 128, and 7,168 dims to a key of 128 and 64 weights.
  package static func deepSeekV32() throws(TamisError) -> Architecture {
    try Architecture(
      name: "DeepSeek-V3.2", layers: 61, heads: 128, absorbed: CoreShape(key: 576, value: 512),
      expanded: CoreShape(key: 192, value: 128),
      indexer: Indexer(heads: 64, dim: 128, topK: 2048, layers: 61, keyBytes: 132),
      activeParameters: 36.62e9, weightBytes: 36.62e9, cacheBytes: 656,
      indexParameters: 61 * (1536 * 64 * 128 + 7168 * (128 + 64)))
  }
}
