// What implementations are known to get wrong (a rotary pairing, a missing ReLU, a Hadamard rotation on one side, a
// missing bias), put into the checkpoint instead of the code: the same program then computes what a wrong one would
// compute from the right checkpoint, and the comparison with transformers must see it.

import Foundation
import TamisCache
import TamisFormats
import TamisModel
import Testing

@Suite struct MutationTests {
  private static let dims = (nope: 8, rope: 8, latent: 16, index: 16, indexHeads: 8)

  /// The error of the logits against transformers, and whether the selected keys are the same in every layer.
  private func compare(
    _ family: String, _ changes: [String: Any?] = [:], _ change: (inout Draft) throws -> Void
  ) throws -> (error: Double, sameKeys: Bool) {
    let source = Tiny.folder(family)
    let folder = try rewritten(source) { draft in
      var draft = draft
      try change(&draft)
      return [draft]
    }
    let golden = try Golden(source.appendingPathComponent("golden.safetensors").path)
    let hook = Hook()
    let mutant = try Fixture.exact(folder.url.path, config(source, changes))
    let logits = try mutant.model.logits(
      [(TokenSequence.create(mutant.makeCache()), golden.integers("input_ids"))], hook.options)
    let selected = hook.calls.filter { $0.layer == 0 }.flatMap { $0.keys }.flatMap { $0 }
    return (
      difference(logits, try golden.rows("logits")), try selected == golden.integers("selected.0")
    )
  }

  private func mustBeSeen(_ result: (error: Double, sameKeys: Bool), keys: Bool = true) {
    // A hundred times the tolerance of the parity test.
    #expect(result.error > 100 * FamilyTests.tolerance)
    if keys { #expect(!result.sameKeys) }
  }

  @Test(arguments: ["deepseek_v32", "glm_moe_dsa"])
  func rewritingAloneChangesNothing(family: String) throws {
    let result = try compare(family) { draft in draft.rows = draft.rows }
    #expect(result.error <= FamilyTests.tolerance)
    #expect(result.sameKeys)
  }

  /// Rotary rows reordered on both sides are the other pairing on the right rows.
  @Test(arguments: ["deepseek_v32", "glm_moe_dsa"])
  func theAttentionsPairing(family: String) throws {
    let d = MutationTests.dims
    let swapped = try compare(family) { draft in
      if draft.name.hasSuffix("q_b_proj.weight") {
        for head in 0..<2 { draft.splitPairs(from: head * (d.nope + d.rope) + d.nope, count: d.rope) }
      } else if draft.name.hasSuffix("kv_a_proj_with_mqa.weight") {
        draft.splitPairs(from: d.latent, count: d.rope)
      }
    }
    // The first layer's selection comes before the first attention.
    mustBeSeen(swapped, keys: false)
  }

  @Test(arguments: ["deepseek_v32", "glm_moe_dsa"])
  func theIndexersPairing(family: String) throws {
    let d = MutationTests.dims
    let interleaved = family == "glm_moe_dsa"
    let swapped = try compare(family) { draft in
      func reorder(_ first: Int) {
        if interleaved {
          draft.splitPairs(from: first, count: d.rope)
        } else {
          draft.joinPairs(from: first, count: d.rope)
        }
      }
      if draft.name.hasSuffix("indexer.wq_b.weight") {
        for head in 0..<d.indexHeads { reorder(head * d.index) }
      } else if draft.name.contains("indexer.wk") || draft.name.contains("indexer.k_norm") {
        reorder(0)
      }
    }
    mustBeSeen(swapped)
  }

  /// Twice the heads, the second half with the opposite query and weight: w relu(x) - w relu(-x) = w x.
  @Test(arguments: ["deepseek_v32", "glm_moe_dsa"])
  func theReLU(family: String) throws {
    let linear = try compare(family, ["index_n_heads": 2 * MutationTests.dims.indexHeads]) { draft in
      guard draft.name.hasSuffix("indexer.wq_b.weight") || draft.name.hasSuffix("indexer.weights_proj.weight") else {
        return
      }
      draft.rows += draft.rows.map { row in row.map { -$0 } }
    }
    mustBeSeen(linear)
  }

  /// H over the dims that are not rotated, on the queries alone.
  @Test(arguments: ["deepseek_v32", "glm_moe_dsa"])
  func theHadamardOnOneSide(family: String) throws {
    let d = MutationTests.dims
    let turned = try compare(family) { draft in
      guard draft.name.hasSuffix("indexer.wq_b.weight") else { return }
      for head in 0..<d.indexHeads { draft.hadamard(from: head * d.index + d.rope, count: d.index - d.rope) }
    }
    mustBeSeen(turned)
  }

  @Test(arguments: ["deepseek_v32", "glm_moe_dsa"])
  func theBiasOfTheKeysNorm(family: String) throws {
    let dropped = try compare(family) { draft in
      if draft.name.hasSuffix("indexer.k_norm.bias") { draft.rows = draft.rows.map { $0.map { _ in 0 } } }
    }
    mustBeSeen(dropped)
  }
}

extension Draft {
  /// The numbers of a BF16 tensor: its rows, or one row for each number of a vector. Setting them may add rows.
  fileprivate var rows: [[Float]] {
    get {
      let columns = shape.count > 1 ? shape[1] : 1
      let bits = bytes.withUnsafeBytes { Array($0.bindMemory(to: UInt16.self)) }
      return stride(from: 0, to: bits.count, by: columns).map { first in
        bits[first..<first + columns].map { Float(bitPattern: UInt32($0) << 16) }
      }
    }
    set {
      // Rounded towards zero where the numbers are new.
      bytes = newValue.flatMap { $0 }.flatMap { value in
        withUnsafeBytes(of: UInt16(value.bitPattern >> 16)) { Array($0) }
      }
      shape[0] = newValue.count
    }
  }

  /// Rows 0 1 2 3 ... become 0 2 4 ... 1 3 5 ...
  fileprivate mutating func splitPairs(from first: Int, count: Int) {
    let old = Array(rows[first..<first + count])
    var all = rows
    for i in 0..<count / 2 {
      all[first + i] = old[2 * i]
      all[first + count / 2 + i] = old[2 * i + 1]
    }
    rows = all
  }

  /// The reverse.
  fileprivate mutating func joinPairs(from first: Int, count: Int) {
    let old = Array(rows[first..<first + count])
    var all = rows
    for i in 0..<count / 2 {
      all[first + 2 * i] = old[i]
      all[first + 2 * i + 1] = old[count / 2 + i]
    }
    rows = all
  }

  /// Rows x become H x / sqrt(count).
  fileprivate mutating func hadamard(from first: Int, count: Int) {
    var all = rows
    for i in 0..<count {
      var sum = Array(repeating: Float(0), count: all[first].count)
      for j in 0..<count {
        let sign: Float = (i & j).nonzeroBitCount % 2 == 0 ? 1 : -1
        for column in sum.indices { sum[column] += sign * rows[first + j][column] }
      }
      all[first + i] = sum.map { $0 / Float(count).squareRoot() }
    }
    rows = all
  }
}
