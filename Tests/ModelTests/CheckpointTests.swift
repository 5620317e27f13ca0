// What a model refuses to be opened from, each with one line that names the key or the tensor; FP8 weights with
// block scales against the same numbers in bf16.

import Foundation
import TamisCache
import TamisFormats
import TamisModel
import TamisRuntime
import Testing

@Suite struct CheckpointTests {
  // MARK: Configurations

  @Test(arguments: [
    ("model_type", "llama"), ("hidden_act", "gelu"), ("scoring_func", "softmax"), ("topk_method", "greedy"),
  ])
  func otherVariantsAreUnsupported(key: String, value: String) throws {
    expectFailure(.unsupported, "\"\(key)\"") { _ = try config(Toy.folder, [key: value]) }
  }

  @Test func otherSwitchesAreUnsupported() {
    expectFailure(.unsupported, "\"attention_bias\"") { _ = try config(Toy.folder, ["attention_bias": true]) }
    expectFailure(.unsupported, "\"q_lora_rank\"") { _ = try config(Toy.folder, ["q_lora_rank": nil]) }
    expectFailure(.unsupported, "\"moe_layer_freq\"") { _ = try config(Toy.folder, ["moe_layer_freq": 2]) }
    expectFailure(.unsupported, "\"rope_type\"") {
      _ = try config(Toy.folder, ["rope_scaling": ["type": "longrope", "factor": 4]])
    }
    expectFailure(.unsupported, "\"quantization_config\"") {
      _ = try config(Toy.folder, ["quantization_config": ["quant_method": "awq"]])
    }
    expectFailure(.unsupported, "\"quantization_config\"") {
      _ = try config(Toy.folder, ["quantization_config": ["quant_method": "fp8", "weight_block_size": [64, 64]]])
    }
  }

  @Test(arguments: [
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "kv_lora_rank",
    "qk_nope_head_dim", "v_head_dim", "index_n_heads", "index_head_dim", "index_topk", "n_routed_experts",
    "num_experts_per_tok", "moe_intermediate_size",
  ])
  func numbersAreNeededAndInRange(key: String) throws {
    expectFailure(.format, key) { _ = try config(Toy.folder, [key: nil]) }
    let values: [Any] = [0, -1, 1.5, Int.max, "7", [7]]
    for value in values { expectFailure(.format, "byte") { _ = try config(Toy.folder, [key: value]) } }
  }

  @Test func numbersFitEachOther() {
    expectFailure(.format, "n_group") { _ = try config(Toy.folder, ["n_group": 3]) }
    expectFailure(.format, "1...4") { _ = try config(Toy.folder, ["topk_group": 5]) }
    expectFailure(.format, "1...4") { _ = try config(Toy.folder, ["num_experts_per_tok": 5]) }
    expectFailure(.format, "even") { _ = try config(Toy.folder, ["qk_rope_head_dim": 31]) }
    expectFailure(.format, "32...") { _ = try config(Toy.folder, ["index_head_dim": 16]) }
    expectFailure(.format, "4 types") { _ = try config(Toy.folder, ["mlp_layer_types": ["dense"]]) }
    let glm = Tiny.folder("glm_moe_dsa")
    expectFailure(.format, "first layer") { _ = try config(glm, ["indexer_types": ["shared", "full", "full"]]) }
    expectFailure(.format, "3 types") { _ = try config(glm, ["indexer_types": ["full"]]) }
  }

  @Test func sharingSchedules() throws {
    let glm = Tiny.folder("glm_moe_dsa")
    let none: [String: Any?] = ["indexer_types": nil]
    func layers(_ changes: [String: Any?]) throws -> [ModelConfig.Selection]? {
      try config(glm, none.merging(changes) { $1 }).index?.layers
    }
    #expect(try layers(["index_topk_pattern": "FSF"]) == [.full, .shared, .full])
    #expect(try layers([:]) == [.full, .full, .full])
    // Layers 0 and 1 come before the offset; then one of four.
    let schedule: [String: Any?] = [
      "index_topk_freq": 4, "index_skip_topk_offset": 2, "num_hidden_layers": 7, "mlp_layer_types": nil,
    ]
    #expect(try layers(schedule) == [.full, .full, .shared, .shared, .shared, .full, .shared])
  }

  // MARK: Tensors

  private func open(_ folder: URL, _ changes: [String: Any?] = [:], exact: Bool = false) throws -> Fixture {
    let config = try config(Toy.folder, changes)
    return exact ? try .exact(folder.path, config) : try Fixture(folder.path, config)
  }

  @Test(arguments: [
    "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.3.mlp.gate.weight",
    "model.layers.3.self_attn.kv_b_proj.weight", "model.layers.0.self_attn.indexer.k_norm.bias",
    "model.layers.2.mlp.experts.7.up_proj.weight",
  ])
  func tensorsAreNeededWithTheirShape(name: String) throws {
    let without = try rewritten(Toy.folder) { $0.name == name ? [] : [$0] }
    expectFailure(.format, name) { _ = try open(without.url) }
    let turned = try rewritten(Toy.folder) { draft in
      var draft = draft
      if draft.name == name { draft.shape = [1] + draft.shape.reversed() }
      return [draft]
    }
    expectFailure(.format, name) { _ = try open(turned.url) }
    let integers = try rewritten(Toy.folder) { draft in
      var draft = draft
      if draft.name == name { draft.type = draft.type == .f32 ? .i32 : .i16 }
      return [draft]
    }
    expectFailure(.unsupported, name) { _ = try open(integers.url) }
  }

  @Test func tiedEmbeddingsNeedNoHead() throws {
    let without = try rewritten(Toy.folder) { $0.name == "lm_head.weight" ? [] : [$0] }
    #expect(try open(without.url, ["tie_word_embeddings": true]).model.config.tiedEmbeddings)
  }

  @Test func weightsStayMapped() throws {
    let fixture = try open(Toy.folder)
    // The checkpoint has 2.3 MB of matrices; norms, fp32 matrices and the transposed W_UK are what is in memory.
    #expect(fixture.context.bytesInUse < 500_000)
  }

  // MARK: FP8

  private static var quantized: [String: Any] { ["quant_method": "fp8", "weight_block_size": [128, 128]] }

  /// E4M3 numbers below 2 from a counter, scales of 2^-4 and 2^-5 by block; and their products as bf16.
  private func random(_ draft: Draft) -> (bytes: [UInt8], scales: [Float], products: [UInt8]) {
    let (rows, columns) = (draft.shape[0], draft.shape[1])
    let across = (columns + 127) / 128
    let scales = (0..<(rows + 127) / 128 * across).map { Float($0 % 2 == 0 ? 0.0625 : 0.03125) }
    var state = UInt64(draft.name.utf8.reduce(1) { $0 &* 31 &+ UInt64($1) })
    var bytes: [UInt8] = []
    var products: [UInt8] = []
    for i in 0..<rows * columns {
      state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      let byte = UInt8(truncatingIfNeeded: state >> 40) & 0xBF
      bytes.append(byte)
      let (exponent, mantissa) = (Int(byte >> 3) & 15, Float(byte & 7) / 8)
      let power = Float(sign: .plus, exponent: max(exponent, 1) - 7, significand: 1)
      var value = (exponent == 0 ? mantissa : 1 + mantissa) * power
      if byte & 0x80 != 0 { value = -value }
      value *= scales[i / columns / 128 * across + i % columns / 128]
      let bits = UInt16(value.bitPattern >> 16)
      products += [UInt8(truncatingIfNeeded: bits), UInt8(bits >> 8)]
    }
    return (bytes, scales, products)
  }

  private func checkpoint(scaled: Bool) throws -> TemporaryFolder {
    try rewritten(Toy.folder) { draft in
      guard draft.name.hasSuffix("proj.weight") || draft.name.contains("indexer.w") || draft.name.contains("_b_proj"),
        !draft.name.contains("weights_proj")
      else { return [draft] }
      let (bytes, scales, products) = random(draft)
      let (rows, columns) = (draft.shape[0], draft.shape[1])
      if !scaled { return [Draft(name: draft.name, type: .bf16, shape: draft.shape, bytes: products)] }
      return [
        Draft(name: draft.name, type: .f8E4M3, shape: draft.shape, bytes: bytes),
        Draft(
          name: "\(draft.name)_scale_inv", type: .f32, shape: [(rows + 127) / 128, (columns + 127) / 128],
          bytes: scales.withUnsafeBytes { Array($0) }),
      ]
    }
  }

  @Test(arguments: [false, true])
  func blockScaledWeightsAreTheirProducts(exact: Bool) throws {
    let scaled = try checkpoint(scaled: true)
    let plain = try checkpoint(scaled: false)
    let ids = (0..<160).map { Int32($0 * 37 % 2048) }
    let logits = try open(scaled.url, ["quantization_config": CheckpointTests.quantized], exact: exact).logits(ids)
    #expect(difference(logits, try open(plain.url, exact: exact).logits(ids)) == 0)
    #expect(logits.allSatisfy { $0.allSatisfy { $0.isFinite } })
    expectFailure(.unsupported, "F8_E4M3") { _ = try open(scaled.url) }
  }
}
