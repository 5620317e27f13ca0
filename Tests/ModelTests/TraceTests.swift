// Attention mass per span against the attention weights of transformers (Vectors/make_vectors.py), for dense and
// sparse models, in one piece, in many, and beside other sequences.

import Foundation
import TamisCache
import TamisFormats
import TamisModel
import TamisOperators
import TamisRuntime
import Testing

private func trace(_ context: Context, _ spans: [Range<Int64>], layers: Int = 0) throws -> AttentionTrace {
  try spans.flatMap { [$0.lowerBound, $0.upperBound] }.withUnsafeBufferPointer {
    try AttentionTrace(context, bounds: $0, layers: layers)
  }
}

@Suite struct TraceTests {
  private let positions = (0..<60).map { Int64($0)..<Int64($0) + 1 }

  private func near(_ trace: AttentionTrace, _ expected: [Float]) -> Bool {
    trace.masses.count == expected.count && zip(trace.masses, expected).allSatisfy { abs($0 - Double($1)) < 2e-5 * 60 }
  }

  /// A span for each position and a line for each layer is the whole picture; the last token alone is its last row.
  @Test(arguments: ["deepseek_v32", "deepseek_v3", "glm_moe_dsa"], [1, 7, 60])
  func massIsThatOfTransformers(family: String, chunk: Int) throws {
    let folder = Tiny.folder(family)
    let golden = try Golden(folder.appendingPathComponent("golden.safetensors").path)
    let tiny = try Fixture.exact(folder.path, config(folder), stepRows: 16)
    let tokens = try golden.integers("input_ids")
    let sequence = try TokenSequence.create(tiny.makeCache())
    let all = try trace(tiny.context, positions, layers: 3)
    let last = try trace(tiny.context, positions, layers: 3)
    for first in stride(from: 0, to: 59, by: chunk) {
      _ = try tiny.model.logits([(sequence, Array(tokens[first..<min(59, first + chunk)]))], traces: [all])
    }
    let fork = try sequence.fork(-1)
    _ = try tiny.model.logits([(sequence, [tokens[59]])], traces: [all])
    _ = try tiny.model.logits([(fork, [tokens[59]])], traces: [last])
    #expect(all.rows == 60 && last.rows == 1)
    #expect(try near(all, golden.rows("mass").flatMap { $0 }))
    #expect(try near(last, golden.rows("mass_last").flatMap { $0 }))
    for line in stride(from: 0, to: last.masses.count, by: 60) {
      #expect(abs(last.masses[line..<line + 60].reduce(0, +) - 1) < 1e-5)
    }
  }

  /// Spans are the sums of their positions over all layers; what lies outside of them is not counted.
  @Test func spansAreSums() throws {
    let folder = Tiny.folder("deepseek_v32")
    let golden = try Golden(folder.appendingPathComponent("golden.safetensors").path)
    let tiny = try Fixture.exact(folder.path, config(folder))
    let spans: [Range<Int64>] = [2..<9, 9..<10, 14..<40, 59..<(1 << 40), (1 << 40)..<Int64.max]
    let sums = try trace(tiny.context, spans)
    _ = try tiny.model.logits(
      [(TokenSequence.create(tiny.makeCache()), golden.integers("input_ids"))], traces: [sums])
    let layers = try golden.rows("mass")
    let expected = spans.map { span in
      layers.reduce(Float(0)) { $0 + zip(0..., $1).filter { span.contains($0.0) }.reduce(0) { $0 + $1.1 } }
    }
    #expect(near(sums, expected))
    try sums.clear()
    #expect(sums.rows == 0 && sums.masses.allSatisfy { $0 == 0 })
  }

  /// Of three sequences in one call two are traced, one of them with a trace that both share in a later call.
  @Test func neighboursChangeNothing() throws {
    let toy = try Toy.exact(topK: 16, stepRows: 32)
    let ids = (0..<100).map { Int32($0 * 53 % 2048) }
    let cache = try toy.makeCache()
    let prompts = [Array(ids.prefix(50)), Array(ids.suffix(7)), Array(ids.dropFirst(9).prefix(41))]
    func spans() throws -> AttentionTrace { try trace(toy.context, [0..<5, 5..<30, 33..<50], layers: 4) }
    let alone = try prompts.map { prompt in
      let mine = try spans()
      _ = try toy.model.logits([(TokenSequence.create(cache), prompt)], traces: [mine])
      return Array(mine.masses)
    }
    let (first, last) = try (spans(), spans())
    let sequences = try prompts.map { (try TokenSequence.create(cache), $0) }
    _ = try toy.model.logits(sequences, traces: [first, nil, last])
    #expect(Array(first.masses) == alone[0] && Array(last.masses) == alone[2])
    #expect(first.rows == 50 && last.rows == 41)
    let shared = try spans()
    _ = try toy.model.logits(
      prompts.map { (try TokenSequence.create(cache), $0) }, traces: [shared, shared, shared])
    #expect(shared.rows == 98)
    for i in shared.masses.indices {
      #expect(abs(shared.masses[i] - alone.reduce(0) { $0 + $1[i] }) < 1e-9)
    }
  }

  /// In bf16 a row still gives 1 to its keys, and tracing changes no bit (traced rows take the absorbed form).
  @Test func theDefaultGivesOne() throws {
    var options = ModelOptions()
    options.mayExpand = false
    let toy = try Fixture(Toy.folder.path, config(Toy.folder, ["index_topk": 24]), options)
    let ids = (0..<90).map { Int32($0 * 53 % 2048) }
    let everything = try trace(toy.context, [0..<90], layers: 4)
    let traced = try toy.model.logits([(TokenSequence.create(toy.makeCache()), ids)], traces: [everything])
    #expect(try traced == toy.model.logits([(TokenSequence.create(toy.makeCache()), ids)]))
    for mass in everything.masses { #expect(abs(mass / 90 - 1) < 1e-3) }
  }

  @Test func aFailedCallTracesNothing() throws {
    var toy = try Toy.exact(stepRows: 8)
    toy.cacheOptions.maxTokens = 64
    let sequence = try TokenSequence.create(toy.makeCache())
    let mine = try trace(toy.context, [0..<64])
    _ = try toy.model.logits([(sequence, [1, 2, 3])], traces: [mine])
    let before = Array(mine.masses)
    expectFailure(.full, "max_tokens") {
      _ = try toy.model.logits([(sequence, (0..<70).map { Int32($0) })], traces: [mine])
    }
    #expect(Array(mine.masses) == before && mine.rows == 3)
    _ = try toy.model.logits([(sequence, [4])], traces: [mine])
    #expect(mine.rows == 4)
  }

  @Test func wrongTracesAreRefused() throws {
    let toy = try Toy.exact()
    for spans in [[3..<3], [5..<9, 8..<10], [-1..<2], []] as [[Range<Int64>]] {
      expectFailure(.argument, "spans") { _ = try trace(toy.context, spans) }
    }
    expectFailure(.argument, "layers is -1") { _ = try trace(toy.context, [0..<1], layers: -1) }
    let three = try trace(toy.context, [0..<1], layers: 3)
    let good = try trace(toy.context, [0..<1])
    let cache = try toy.makeCache()
    let sequences = try (0..<2).map { _ in (try TokenSequence.create(cache), [Int32(1)]) }
    expectFailure(.argument, "has 3 layers, the model 4") {
      _ = try toy.model.logits([sequences[0]], traces: [three])
    }
    // The first trace of a refused call is free again.
    expectFailure(.argument, "3 layers") { _ = try toy.model.logits(sequences, traces: [good, three]) }
    _ = try toy.model.logits([sequences[1]], traces: [good])
    #expect(good.rows == 1)
  }
}
