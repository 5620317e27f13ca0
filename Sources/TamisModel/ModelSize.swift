// How large a model is, from its configuration alone: the parameters it has and those one token is multiplied with.
// The configuration's limits keep every product below 2^59.

extension ModelConfig {
  /// Of the tensors that the model uses.
  package var parameters: Int {
    (tiedEmbeddings ? 1 : 2) &* vocabulary &* hidden &+ hidden &+ sum { layer in
      2 &* hidden &+ attentionParameters(layer) &+ feedForwardParameters(layer, routed: experts?.routed ?? 0)
    }
  }

  /// Without the embeddings that are looked up and the experts that are not chosen.
  package var activeParameters: Int {
    vocabulary &* hidden &+ hidden &+ sum { layer in
      2 &* hidden &+ attentionParameters(layer) &+ feedForwardParameters(layer, routed: experts?.perToken ?? 0)
    }
  }

  /// Layers that have an indexer of their own.
  package var indexLayers: Int { index?.layers.reduce(0) { $0 &+ ($1 == .full ? 1 : 0) } ?? 0 }

  private func sum(_ parameters: (Int) -> Int) -> Int { (0..<layers).reduce(0) { $0 &+ parameters($1) } }

  private func attentionParameters(_ layer: Int) -> Int {
    let query = queryLatent &* hidden &+ queryLatent &+ heads &* queryDim &* queryLatent
    let key = keyDim &* hidden &+ latent &+ heads &* (nope &+ value) &* latent
    let out = hidden &* heads &* value
    guard let index, layer < index.layers.count, index.layers[layer] == .full else { return query &+ key &+ out }
    return query &+ key &+ out &+ index.heads &* index.dim &* queryLatent &+ index.dim &* hidden &+ 2 &* index.dim
      &+ index.heads &* hidden
  }

  private func feedForwardParameters(_ layer: Int, routed: Int) -> Int {
    guard let experts, isSparse[layer] else { return 3 &* hidden &* intermediate }
    let networks = routed &* experts.intermediate &+ experts.sharedIntermediate
    return experts.routed &* hidden &+ experts.routed &+ 3 &* hidden &* networks
  }
}
