// The tensors of one decoder layer by the names that Hugging Face checkpoints give them. It refuses nothing itself:
// the store checks that each is there, with its shape.

import TamisOperators
import TamisRuntime

struct LayerWeights {
  let inputNorm: UnsafePointer<Float>  // [hidden]
  let attention: AttentionWeights
  let feedForwardNorm: UnsafePointer<Float>  // [hidden]
  let feedForward: FeedForwardWeights

  init(_ store: WeightStore, _ config: ModelConfig, layer: Int) throws(TamisError) {
    let name = "model.layers.\(layer)"
    inputNorm = try store.vector("\(name).input_layernorm.weight", config.hidden)
    attention = try AttentionWeights(store, config, "\(name).self_attn", layer: layer)
    feedForwardNorm = try store.vector("\(name).post_attention_layernorm.weight", config.hidden)
    if config.isSparse[layer], let experts = config.experts {
      feedForward = .mixture(try MixtureWeights(store, config, experts, "\(name).mlp"))
    } else {
      feedForward = .dense(try GatedWeights(store, "\(name).mlp", hidden: config.hidden, config.intermediate))
    }
  }
}

struct AttentionWeights {
  let queryDown: Tensor  // [queryLatent, hidden]
  let queryNorm: UnsafePointer<Float>
  let queryUp: Tensor  // [heads * queryDim, queryLatent]
  let keyDown: Tensor  // [latent + rope, hidden]
  let keyNorm: UnsafePointer<Float>
  let keyUp: Tensor  // [heads * (nope + value), latent]: W_UK and W_UV of each head
  /// W_UK transposed: [heads] of [latent, nope].
  let absorb: [Tensor]
  /// W_UV: [heads] of [value, latent].
  let expand: [Tensor]
  let out: Tensor  // [hidden, heads * value]
  let index: IndexWeights?

  init(_ store: WeightStore, _ config: ModelConfig, _ name: String, layer: Int) throws(TamisError) {
    let (hidden, heads) = (config.hidden, config.heads)
    queryDown = try store.matrix("\(name).q_a_proj.weight", config.queryLatent, hidden)
    queryNorm = try store.vector("\(name).q_a_layernorm.weight", config.queryLatent)
    queryUp = try store.matrix("\(name).q_b_proj.weight", heads &* config.queryDim, config.queryLatent)
    keyDown = try store.matrix("\(name).kv_a_proj_with_mqa.weight", config.keyDim, hidden)
    keyNorm = try store.vector("\(name).kv_a_layernorm.weight", config.latent)
    let headRows = config.nope &+ config.value
    keyUp = try store.matrix("\(name).kv_b_proj.weight", heads &* headRows, config.latent)
    absorb = try store.transposed(keyUp, heads: heads, headRows: headRows, rows: config.nope)
    var expand: [Tensor] = []
    for head in 0..<heads {
      expand.append(try keyUp.slice(head &* headRows &+ config.nope..<(head &+ 1) &* headRows))
    }
    self.expand = expand
    out = try store.matrix("\(name).o_proj.weight", hidden, heads &* config.value)
    if let index = config.index, index.layers[layer] == .full {
      self.index = try IndexWeights(store, config, index, "\(name).indexer")
    } else {
      index = nil
    }
  }
}

struct IndexWeights {
  let query: Tensor  // [heads * dim, queryLatent]
  let key: Tensor  // [dim, hidden]
  let keyNorm: UnsafePointer<Float>  // [dim]
  let keyBias: UnsafePointer<Float>  // [dim]
  let weights: Tensor  // [heads, hidden] F32

  init(_ store: WeightStore, _ config: ModelConfig, _ index: ModelConfig.Index, _ name: String) throws(TamisError) {
    query = try store.matrix("\(name).wq_b.weight", index.heads &* index.dim, config.queryLatent)
    key = try store.matrix("\(name).wk.weight", index.dim, config.hidden)
    keyNorm = try store.vector("\(name).k_norm.weight", index.dim)
    keyBias = try store.vector("\(name).k_norm.bias", index.dim)
    weights = try store.exactMatrix("\(name).weights_proj.weight", index.heads, config.hidden)
  }
}

enum FeedForwardWeights {
  case dense(GatedWeights)
  case mixture(MixtureWeights)
}

/// down(silu(gate x) * up x)
struct GatedWeights {
  let gate: Tensor  // [intermediate, hidden]
  let up: Tensor  // [intermediate, hidden]
  let down: Tensor  // [hidden, intermediate]

  init(_ store: WeightStore, _ name: String, hidden: Int, _ intermediate: Int) throws(TamisError) {
    gate = try store.matrix("\(name).gate_proj.weight", intermediate, hidden)
    up = try store.matrix("\(name).up_proj.weight", intermediate, hidden)
    down = try store.matrix("\(name).down_proj.weight", hidden, intermediate)
  }
}

struct MixtureWeights {
  let router: Tensor  // [routed, hidden] F32
  let bias: UnsafePointer<Float>  // [routed]
  let experts: [GatedWeights]
  let shared: GatedWeights?

  init(
    _ store: WeightStore, _ config: ModelConfig, _ experts: ModelConfig.Experts, _ name: String
  ) throws(TamisError) {
    router = try store.exactMatrix("\(name).gate.weight", experts.routed, config.hidden)
    bias = try store.vector("\(name).gate.e_score_correction_bias", experts.routed)
    var all: [GatedWeights] = []
    for expert in 0..<experts.routed {
      all.append(
        try GatedWeights(store, "\(name).experts.\(expert)", hidden: config.hidden, experts.intermediate))
    }
    self.experts = all
    shared =
      experts.sharedIntermediate == 0
      ? nil
      : try GatedWeights(store, "\(name).shared_experts", hidden: config.hidden, experts.sharedIntermediate)
  }
}
