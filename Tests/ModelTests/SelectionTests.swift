// How rows choose their keys: what the options say, what a hook sees and may change, and that no other thread can
// find a token before all layers have written its rows.

import TamisCache
import TamisModel
import TamisOperators
import TamisRuntime
import Testing

@Suite struct SelectionTests {
  private let ids = (0..<40).map { Int32($0 * 53 % 2048) }

  private func logits(_ toy: Fixture, _ options: EvaluateOptions) throws -> [[Float]] {
    try toy.model.logits([(TokenSequence.create(toy.makeCache()), ids)], options)
  }

  // MARK: Paths

  @Test func thePathsAgreeWhereNothingIsLeftOut() throws {
    let toy = try Toy.exact()
    var dense = EvaluateOptions(rows: .all)
    dense.attention = .dense
    let expected = try logits(toy, dense)
    #expect(try logits(toy, EvaluateOptions(rows: .all)) == expected)
    var sparse = EvaluateOptions(rows: .all)
    sparse.attention = .sparse
    for topK in [nil, 40, 1 << 30] {
      sparse.topK = topK
      #expect(try logits(toy, sparse) == expected)
    }
    dense.topK = 3
    #expect(try logits(toy, dense) == expected)
  }

  @Test func topKOverridesTheModels() throws {
    var options = EvaluateOptions(rows: .all)
    options.topK = 16
    let given = try logits(Toy.exact(), options)
    #expect(try given == logits(Toy.exact(topK: 16), EvaluateOptions(rows: .all)))
    #expect(try given != logits(Toy.exact(), EvaluateOptions(rows: .all)))
    options.topK = 0
    expectFailure(.argument, "top_k is 0") { _ = try logits(Toy.exact(), options) }
  }

  /// A dense beginning can be gone on sparsely: its index keys are there.
  @Test func denseThenSparse() throws {
    let toy = try Toy.exact(topK: 16)
    let (a, b) = try (TokenSequence.create(toy.makeCache()), TokenSequence.create(toy.makeCache()))
    var dense = EvaluateOptions()
    dense.attention = .dense
    // Within topK the two beginnings are the same, so what follows must be.
    _ = try toy.model.logits([(a, Array(ids.prefix(16)))], dense)
    _ = try toy.model.logits([(b, Array(ids.prefix(16)))])
    #expect(
      try toy.model.logits([(a, Array(ids[16...]))], .all) == toy.model.logits([(b, Array(ids[16...]))], .all))
  }

  @Test func aModelWithoutAnIndexerSelectsNothing() throws {
    let folder = Tiny.folder("deepseek_v3")
    let tiny = try Fixture.exact(folder.path, config(folder))
    var sparse = EvaluateOptions()
    sparse.attention = .sparse
    var topK = EvaluateOptions()
    topK.topK = 4
    let hook = Hook()
    defer { withExtendedLifetime(hook) {} }
    var hooked = hook.options
    hooked.attention = .automatic
    for options in [sparse, topK, hooked] {
      expectFailure(.argument, "without an indexer") {
        _ = try tiny.model.logits([(TokenSequence.create(tiny.makeCache()), [1, 2])], options)
      }
    }
  }

  // MARK: Hooks

  @Test func hooksSeeEveryLayerStepAndRequest() throws {
    let toy = try Toy.exact(topK: 6, stepRows: 16)
    let cache = try toy.makeCache()
    let hook = Hook()
    let requests = try [10, 20].map { (try TokenSequence.create(cache), Array(ids.prefix($0))) }
    let plain = try requests.map { try toy.model.logits([(TokenSequence.create(cache), $0.1)], .all) }
    #expect(try toy.model.logits(requests, hook.options) == plain.flatMap { $0 })
    // Steps of 16 rows: (request 0: 10 rows, request 1: 6 rows), then request 1: 14 rows.
    let expected = (0..<4).flatMap { [($0, 0, 0, 10), ($0, 1, 0, 6)] } + (0..<4).map { ($0, 1, 6, 14) }
    #expect(hook.calls.count == expected.count)
    for (call, (layer, request, first, rows)) in zip(hook.calls, expected) {
      #expect((call.layer, call.request, call.first, call.keys.count) == (layer, request, first, rows))
      #expect(call.k == 6)
      for (i, keys) in call.keys.enumerated() {
        let chosen = keys.filter { $0 >= 0 }
        #expect(chosen.count == min(6, first + i + 1) && chosen == chosen.sorted() && Set(chosen).count == chosen.count)
        #expect(chosen.allSatisfy { $0 <= first + i })
      }
    }
  }

  /// The keys that each layer attends to are exactly those that transformers selects; a shared layer has those of the
  /// layer below.
  @Test(arguments: [("deepseek_v32", [0, 1, 2]), ("glm_moe_dsa", [0, 0, 1])], [60, 7])
  func selectedKeysAreThoseOfTransformers(family: (name: String, layers: [Int]), stepRows: Int) throws {
    let folder = Tiny.folder(family.name)
    let golden = try Golden(folder.appendingPathComponent("golden.safetensors").path)
    let tiny = try Fixture.exact(folder.path, config(folder), stepRows: stepRows)
    let hook = Hook()
    let sequence = try TokenSequence.create(tiny.makeCache())
    _ = try tiny.model.logits([(sequence, golden.integers("input_ids"))], hook.options)
    for (layer, recorded) in family.layers.enumerated() {
      let keys = hook.calls.filter { $0.layer == layer }.flatMap { $0.keys }.flatMap { $0 }
      #expect(try keys == golden.integers("selected.\(recorded)"))
    }
  }

  /// Keys named by a hook are what is attended to: all keys are the dense result, and a window reads nothing else.
  @Test func hooksChoose() throws {
    let toy = try Toy.exact()
    let hook = Hook()
    hook.change = { keys, position in
      for i in keys.indices { keys[i] = i <= position ? Int32(i) : -1 }
    }
    var options = hook.options
    options.topK = 40
    var dense = EvaluateOptions(rows: .all)
    dense.attention = .dense
    #expect(try logits(toy, options) == logits(toy, dense))
    // A window of one key in every layer: each position's logits are those of its token alone at that position.
    hook.change = { keys, position in
      keys.update(repeating: -1)
      keys[0] = Int32(position)
    }
    let alone = try logits(toy, options)
    var other = ids
    other[3] = 77
    let changed = try toy.model.logits([(TokenSequence.create(toy.makeCache()), other)], options)
    for i in ids.indices { #expect((alone[i] == changed[i]) == (i != 3)) }
  }

  @Test func whatAHookMayNotChoose() throws {
    let toy = try Toy.exact(topK: 4)
    let hook = Hook()
    let sequence = try TokenSequence.create(toy.makeCache())
    let bad: [([Int32], String)] = [
      ([0, 1, 2, 40], "expected 0 to"), ([0, 1, 1, 2], "ascending"), ([3, 2, 1, 0], "ascending"),
      ([0, -1, 1, -1], "behind -1"), ([-2, 0, 1, 2], "expected 0 to"), ([.min, 0, 1, 2], "expected 0 to"),
    ]
    for (keys, text) in bad {
      hook.change = { row, position in
        if position == 20 { _ = row.update(from: keys) }
      }
      expectFailure(.argument, text) { _ = try toy.model.logits([(sequence, ids)], hook.options) }
      #expect(try sequence.length() == 0)
    }
    hook.change = { _, _ in }
    hook.answer = 5
    expectFailure(.cancelled, "with 5") { _ = try toy.model.logits([(sequence, ids)], hook.options) }
    #expect(try sequence.length() == 0)
    hook.answer = 0
    #expect(try toy.model.logits([(sequence, ids)], hook.options).count == 40)
  }

  // MARK: Other threads

  /// In the middle of a step a match finds what earlier calls and earlier steps have written, and what it finds goes
  /// on as a text evaluated from its beginning.
  @Test func matchesFindWrittenRowsOnly() throws {
    let toy = try Toy.exact(topK: 6, stepRows: 16)
    let cache = try toy.makeCache()
    let whole = try toy.model.logits([(TokenSequence.create(toy.makeCache()), ids)], .all)
    let sequence = try TokenSequence.create(cache)
    _ = try toy.model.logits([(sequence, Array(ids.prefix(5)))])
    let hook = Hook()
    var lengths: [Int] = []
    var found: [TokenSequence] = []
    hook.visit = {
      let (match, length) = try ids.withUnsafeBufferPointer {
        try TokenSequence.match(cache, tokens: #require($0.baseAddress), count: $0.count)
      }
      lengths.append(length)
      found.append(match)
    }
    let logits = try toy.model.logits([(sequence, Array(ids[5...]))], hook.options)
    #expect(logits == Array(whole[5...]))
    #expect(lengths == [5, 5, 5, 5, 21, 21, 21, 21, 37, 37, 37, 37])
    for (match, length) in zip(found, lengths) {
      #expect(try toy.model.logits([(match, Array(ids[length...]))], .all) == Array(whole[length...]))
    }
  }
}
