// Results over pages are the bits of results over flat tensors: every pair of dtypes, several page sizes, every
// instruction set here; alone or in a ragged batch; in one prefill or token by token.

import TamisCache
import TamisKernels
import TamisOperators
import TamisReference
import TamisRuntime
import TamisTestSupport
import Testing

struct Combination: Sendable, CustomTestStringConvertible {
  var options = CacheOptions()

  var testDescription: String {
    "\(options.kvDType.name) \(options.kvHeads) own \(options.ownValues) / "
      + "\(options.indexDType.map { "\($0.name)" } ?? "none") / \(options.pageTokens)"
  }

  static let all: [Combination] = {
    var all: [Combination] = []
    let indexDTypes: [DType?] = [nil, .f32, .f16, .bf16, .i8, .index132]
    for (i, kv) in [DType.f32, .f16, .bf16, .mla656].enumerated() {
      for (j, index) in indexDTypes.enumerated() {
        for (p, pageTokens) in [16, 48, 64].enumerated() {
          var combination = Combination()
          combination.options.kvDType = kv
          combination.options.indexDType = index
          combination.options.pageTokens = pageTokens
          if kv != .mla656 {
            combination.options.keyDim = 40
            combination.options.valueDim = 24
            combination.options.ownValues = (i + j + p) % 2 == 0
            combination.options.kvHeads = 1 + (j + p) % 2
          }
          combination.options.indexDim = index == .index132 ? 128 : 32
          combination.options.layers = 2
          all.append(combination)
        }
      }
    }
    return all
  }()

  /// A small one for tests about something else.
  static var small: CacheOptions {
    var options = CacheOptions()
    options.kvDType = .bf16
    options.keyDim = 32
    options.valueDim = 24
    options.indexDim = 32
    options.pageTokens = 16
    return options
  }
}

@Suite struct FlatTests {
  @Test(arguments: Combination.all)
  func pagesGiveTheBitsOfFlatTensors(_ combination: Combination) throws {
    let options = combination.options
    for isa in usableISAs {
      let context = try makeContext(isa: isa)
      var numbers = SplitMix64(seed: 11)
      let (m, n, k) = (211, 5, 37)
      let rows = try Rows32(m, options, &numbers)
      let queries = try Queries(n, options, indexHeads: 3, heads: 4, &numbers)
      let sequence = try TokenSequence.create(Cache(context, options))
      // Ragged pieces, the last layer; the other layer keeps its zeros.
      try sequence.extend(nil, 100)
      try sequence.write(rows, 0..<1, layer: 1)
      try sequence.write(rows, 1..<50, layer: 1)
      try sequence.write(rows, 50..<100, layer: 1)
      try sequence.extend(nil, m - 100)
      try sequence.write(rows, 100..<m, layer: 1)
      let flat = try Flat(rows, m, options, context)
      #expect(
        try run([sequence], rows: [n], queries, 0..<n, k: k, layer: 1)
          == flat.run(context, options, queries, 0..<n, k: k), "\(isa)")
      #expect(
        try run([sequence], rows: [n], queries, 0..<n, k: k, layer: 1, dense: true)
          == flat.run(context, options, queries, 0..<n, k: k, dense: true), "\(isa)")
    }
  }

  /// Query and key offsets of a batch must not be confused (pitfalls 14 and 15).
  @Test(arguments: [DType.bf16, .mla656])
  func raggedBatchIsEachSequenceAlone(_ kv: DType) throws {
    var options = Combination.small
    options.kvDType = kv
    options.kvHeads = 1
    if kv == .mla656 { (options.keyDim, options.valueDim) = (576, 512) }
    for threads in [UInt32(1), 2, 5] {
      let context = try makeContext(threads: threads)
      let cache = try Cache(context, options)
      var numbers = SplitMix64(seed: 5)
      let lengths = [1, 300, 17, 1100, 64, 9]
      let counts = [1, 3, 0, 40, 1, 9]
      let n = counts.reduce(0, +)
      let k = 33
      let queries = try Queries(n, options, indexHeads: 2, heads: 4, &numbers)
      let sequences = try lengths.map { length in
        let sequence = try TokenSequence.create(cache)
        try sequence.append(Rows32(length, options, &numbers), 0..<length)
        return sequence
      }
      for dense in [false, true] {
        let together = try run(sequences, rows: counts, queries, 0..<n, k: k, dense: dense)
        var alone = Outcome()
        var first = 0
        for (sequence, count) in zip(sequences, counts) where count > 0 {
          alone = alone + (try run([sequence], rows: [count], queries, first..<first + count, k: k, dense: dense))
          first += count
        }
        #expect(together == alone, "\(threads) threads, dense \(dense)")
      }
    }
  }

  /// Token by token from the first on: index keys are written while nothing is scored yet, positions past 2 k,
  /// more than 256 steps, and exactly min(k, visible) chosen in each (pitfalls 10, 11, 17 and 18).
  @Test(arguments: [1, 2])
  func decodingIsPrefillStepByStep(_ threads: UInt32) throws {
    let options = Combination.small
    let context = try makeContext(threads: threads)
    let cache = try Cache(context, options)
    var numbers = SplitMix64(seed: 23)
    let (m, k) = (330, 48)
    let rows = try Rows32(m, options, &numbers)
    let queries = try Queries(m, options, indexHeads: 4, heads: 4, &numbers)
    let whole = try TokenSequence.create(cache)
    try whole.append(rows, 0..<m)
    let prefill = try run([whole], rows: [m], queries, 0..<m, k: k)
    let dense = try run([whole], rows: [m], queries, 0..<m, k: k, dense: true)

    let stepwise = try TokenSequence.create(cache)
    var (decoded, decodedDense) = (Outcome(), Outcome())
    for step in 0..<m {
      try stepwise.append(rows, step..<step + 1)
      decoded = decoded + (try run([stepwise], rows: [1], queries, step..<step + 1, k: k))
      decodedDense = decodedDense + (try run([stepwise], rows: [1], queries, step..<step + 1, k: k, dense: true))
    }
    #expect(decoded == prefill)
    #expect(decodedDense == dense)
    for step in 0..<m {
      let chosen = decoded.indices[step * k..<(step + 1) * k].filter { $0 >= 0 }
      #expect(chosen.count == min(k, step + 1))
      #expect(zip(chosen, chosen.dropFirst()).allSatisfy { $0 < $1 } && chosen.allSatisfy { $0 <= Int32(step) })
    }

    // Chunks of prefill, then decode, on a third sequence.
    let chunked = try TokenSequence.create(cache)
    var pieces = Outcome()
    var at = 0
    for count in [7, 1, 100, 16, 150] + Array(repeating: 1, count: m - 274) {
      try chunked.append(rows, at..<at + count)
      pieces = pieces + (try run([chunked], rows: [count], queries, at..<at + count, k: k))
      at += count
    }
    #expect(pieces == prefill)
  }

  /// Drafts are written, judged together and partly dropped, index keys with them (pitfalls 19 and 34).
  @Test func speculationLeavesNoTrace() throws {
    let options = Combination.small
    let cache = try Cache(makeContext(), options)
    var numbers = SplitMix64(seed: 31)
    let (m, k) = (200, 24)
    let rows = try Rows32(m, options, &numbers)
    let wrong = try Rows32(m, options, &numbers)
    let queries = try Queries(m, options, indexHeads: 4, heads: 4, &numbers)
    let plain = try TokenSequence.create(cache)
    try plain.append(rows, 0..<m)
    let expected = try run([plain], rows: [m], queries, 0..<m, k: k)

    let drafted = try TokenSequence.create(cache)
    var outcome = Outcome()
    var at = 0
    while at < m {
      let accepted = min(1 + numbers.integer(below: 4), m - at)
      let drafts = min(accepted + numbers.integer(below: 20), m - at)
      try drafted.extend(nil, drafts)
      try drafted.write(rows, at..<at + accepted)
      if drafts > accepted { try drafted.write(wrong, at + accepted..<at + drafts) }
      let all = try run([drafted], rows: [drafts], queries, at..<at + drafts, k: k)
      let (perRow, heads) = (options.valueDim * 4 * 4, 4 * 4)
      outcome =
        outcome
        + Outcome(
          indices: Array(all.indices.prefix(accepted * k)), scores: Array(all.scores.prefix(accepted * k * 4)),
          out: Array(all.out.prefix(accepted * perRow)), lse: Array(all.lse.prefix(accepted * heads)))
      at += accepted
      try drafted.truncate(Int64(at))
    }
    #expect(outcome == expected)
  }

  /// A fork continues like the sequence it came from, and neither sees what the other writes.
  @Test func forksContinueOnTheirOwn() throws {
    let options = Combination.small
    let cache = try Cache(makeContext(), options)
    var numbers = SplitMix64(seed: 37)
    let (m, k) = (150, 24)
    let rows = try Rows32(m, options, &numbers)
    let other = try Rows32(m, options, &numbers)
    let queries = try Queries(m, options, indexHeads: 4, heads: 4, &numbers)
    let trunk = try TokenSequence.create(cache)
    try trunk.append(rows, 0..<100)
    let before = try run([trunk], rows: [100], queries, 0..<100, k: k)
    let branch = try trunk.fork(90)
    try branch.append(rows, 90..<m)
    let foreign = try trunk.fork(-1)
    try foreign.write(other, 0..<100)
    #expect(try run([trunk], rows: [100], queries, 0..<100, k: k) == before)
    try trunk.append(other, 100..<m)
    let fresh = try TokenSequence.create(cache)
    try fresh.append(rows, 0..<m)
    #expect(
      try run([branch], rows: [m], queries, 0..<m, k: k) == run([fresh], rows: [m], queries, 0..<m, k: k))
  }

  /// Offsets within a page beyond 2^32 bytes (pitfall 21).
  @Test func offsetsOfHugePages() throws {
    var options = ContextOptions()
    options.threads = 1
    options.allocate = { _, bytes, _ in sparseMemory(bytes) }
    options.release = { _, memory, bytes in freeSparseMemory(memory, bytes) }
    let context = try Context.create(options)
    var shape = Combination.small
    shape.pageTokens = 1 << 24
    shape.layers = 4  // of 1.6 GB each
    let sequence = try TokenSequence.create(Cache(context, shape))
    var numbers = SplitMix64(seed: 41)
    let rows = try (0..<4).map { _ in try Rows32(20, shape, &numbers) }
    let queries = try Queries(20, shape, indexHeads: 4, heads: 4, &numbers)
    try sequence.extend(nil, 20)
    for layer in 0..<4 { try sequence.write(rows[layer], 0..<20, layer: layer) }
    for layer in 0..<4 {
      #expect(
        try run([sequence], rows: [20], queries, 0..<20, k: 5, layer: layer)
          == Flat(rows[layer], 20, shape, context).run(context, shape, queries, 0..<20, k: 5))
    }
  }
}
