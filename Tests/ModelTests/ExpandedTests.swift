// The expanded form of attention against the absorbed one, which has tests of its own: the same logits within rounding
// on both sides of the position where the rule changes from one to the other, whatever is evaluated beside it.

import TamisCache
import TamisModel
import TamisOperators
import TamisRuntime
import Testing

@Suite struct ExpandedTests {
  private let ids = (0..<300).map { Int32($0 * 53 % 2048) }

  /// 300 rows with 16 keys each: expanded up to some position in the middle, absorbed behind it.
  @Test(arguments: [16, 24, 512])
  func bothFormsGiveTheSameLogits(topK: Int) throws {
    let toy = try Toy.exact(topK: topK, stepRows: 300)
    let end = ExpandedForm.end(toy.model.config, rows: 300, selected: topK < 300 ? topK : 0, .init())
    #expect(topK < 300 ? end > 40 && end < 260 : end >= 300)
    let absorbed = try Toy.exact(topK: topK, expands: false).logits(ids)
    let expanded = try toy.logits(ids)
    #expect(difference(expanded, absorbed) <= 2e-5)
    // It did take part: no two sums of this length agree to the bit everywhere.
    #expect(expanded != absorbed)
    for chunk in [33, 64, 299] { #expect(try difference(toy.logits(ids, chunk: chunk), absorbed) <= 2e-5) }
    // Below the fewest rows nothing is expanded.
    #expect(try toy.logits(ids, chunk: ExpandedForm.fewestRows - 1) == absorbed)
  }

  /// As models are opened by default: bf16 weights and cache.
  @Test(arguments: ["portable", "avx2", "avx512", "amx"])
  func inBF16TheyAreClose(isa: String) throws {
    let config = try config(Toy.folder, ["index_topk": 24])
    var options = ModelOptions()
    let expanded = try Fixture(Toy.folder.path, config, options, isa: isa).logits(ids)
    options.mayExpand = false
    let absorbed = try Fixture(Toy.folder.path, config, options, isa: isa).logits(ids)
    let rows = zip(expanded, absorbed).map { difference($0, $1) }.sorted()
    // A key at the edge of the selection may change sides in a later layer; most rows have none.
    #expect(rows[rows.count / 2] < 0.02)
  }

  @Test func neighboursAndThreadsChangeNothing() throws {
    let toy = try Toy.exact(topK: 24, stepRows: 100)
    let prompts = [Array(ids.prefix(150)), Array(ids.suffix(3)), Array(ids[100..<241])]
    let cache = try toy.makeCache()
    let alone = try prompts.map { try toy.model.logits([(TokenSequence.create(cache), $0)], .all) }
    let together = try prompts.map { (try TokenSequence.create(cache), $0) }
    #expect(try toy.model.logits(together, .all) == alone.flatMap { $0 })
    let single = try Toy.exact(topK: 24, stepRows: 100, threads: 1)
    #expect(try single.logits(prompts[0]) == alone[0])
  }

  /// A hook's keys are those that the expanded form reads, too.
  @Test func hooksChoose() throws {
    let hook = Hook()
    hook.change = { keys, position in
      keys.update(repeating: -1)
      for (i, key) in stride(from: position % 7, through: position, by: 7).suffix(keys.count).enumerated() {
        keys[i] = Int32(key)
      }
    }
    var options = hook.options
    options.topK = 100
    let logits = try [true, false].map { expands in
      let toy = try Toy.exact(stepRows: 300, expands: expands)
      return try toy.model.logits([(TokenSequence.create(toy.makeCache()), ids)], options)
    }
    #expect(logits[0] != logits[1])
    #expect(difference(logits[0], logits[1]) <= 2e-5)
  }

  @Test func theRuleByCounts() throws {
    let config = try config(Toy.folder)
    func end(rows: Int, selected: Int, expanded: Double = 1, gather: Double = 0) -> Int {
      var costs = ExpandedForm.Costs()
      (costs.expanded, costs.gather) = (expanded, gather)
      return ExpandedForm.end(config, rows: rows, selected: selected, costs)
    }
    // Few rows; then 4 heads of 64 + 32 dims and 4 * 64 * 64 / rows for the expansion, against 16 * (96 + 64).
    #expect(end(rows: 31, selected: 0) == 0)
    #expect(end(rows: 64, selected: 0) == config.maxPositions)
    #expect(end(rows: 64, selected: 16) == (16 * 2560 + 16384) / (384 + 256))
    #expect(end(rows: 256, selected: 16) == (16 * 2560 + 16384) / (384 + 64))
    // Where an expanded multiply-add takes twice as long, there are twice as many of them.
    #expect(end(rows: 64, selected: 16, expanded: 2) == (16 * 2560 + 16384) / (2 * (384 + 256)))
    // Where taking up a key takes as long as multiplying it with 16 heads, it counts as often.
    #expect(end(rows: 64, selected: 16, gather: 1) == (16 * 5120 + 16384) / (384 + 256))
    // Beyond four times it is cheaper for the first rows only, whether all keys are selected there or not.
    #expect(end(rows: 64, selected: 0, expanded: 5) == 16384 / (5 * 640 - 2560))
    #expect(end(rows: 64, selected: 100, expanded: 5) == 16384 / (5 * 640 - 2560))
    #expect(end(rows: 64, selected: 16, expanded: 5) == (16 * 2560 + 16384) / (5 * 640))
    // Mixed arithmetic is not expanded.
    #expect(ExpandedAttention.takes(weight: .bf16, keys: .mla656) && ExpandedAttention.takes(weight: .f32, keys: .f16))
    #expect(!ExpandedAttention.takes(weight: .f32, keys: .bf16) && !ExpandedAttention.takes(weight: .f8e4m3, keys: .f32))
  }
}
