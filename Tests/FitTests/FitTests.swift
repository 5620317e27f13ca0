// Fitting as a whole: a indexer finds what a teacher indexer attends to on held-out sequences, in the same bits for any
// number of threads; whatever stops a fit leaves the indexer as it was; wrong input is refused by name.

import Glibc
import TamisFormats
import TamisOperators
import TamisReference
import TamisRuntime
import TamisTestSupport
import Testing

@testable import TamisFit

/// Sequences of tokens of eight kinds; a token attends to those of its own kind.
struct Kinds {
  let width = 24
  let tokens = 128

  func capture(_ context: Context, sequences: Range<UInt64>) throws -> Capture {
    var common = SplitMix64(seed: 77)
    let centres = rows(common.normals(8 * width).map(Float.init), width)
    let capture = Capture(context)
    for seed in sequences {
      var random = SplitMix64(seed: seed)
      let kinds = (0..<tokens).map { _ in random.integer(below: 8) }
      let hidden = kinds.flatMap { kind in centres[kind].map { Float($0 + 0.3 * random.normal()) } }
      var attention = [Float](repeating: 0, count: tokens * tokens)
      for row in 0..<tokens {
        let likes = (0...row).map { kinds[$0] == kinds[row] ? exp(4.0) : 1 }
        let all = likes.reduce(0, +)
        for s in likes.indices { attention[row * tokens + s] = Float(likes[s] / all) }
      }
      try withTensor(hidden, [tokens, width]) { x in
        try withTensor(attention, [tokens, tokens]) { p in
          var input = CaptureInput(hidden: x)
          input.attention = p
          try capture.add(input)
        }
      }
    }
    return capture
  }
}

extension IndexerLoss {
  static func parameters(_ indexer: LearnedIndexer) throws -> Parameters {
    Parameters(
      query: rows(try values(indexer, .query), indexer.shape.features),
      key: rows(try values(indexer, .key), indexer.shape.width),
      gain: try values(indexer, .gain).map(Double.init), bias: try values(indexer, .bias).map(Double.init),
      weights: rows(try values(indexer, .weights), indexer.shape.width))
  }
}

func bits(_ indexer: LearnedIndexer) throws -> [UInt32] {
  try IndexerTensor.allCases.flatMap { try values(indexer, $0).map(\.bitPattern) }
}

@Suite struct FitTests {
  private func options(steps: Int = 300) -> FitOptions {
    var options = FitOptions()
    options.steps = steps
    options.rows = 64
    return options
  }

  @Test func anIndexerFindsWhatItWasShown() throws {
    let context = try makeContext()
    let training = try Kinds().capture(context, sequences: 0..<12)
    let heldOut = try Kinds().capture(context, sequences: 100..<104)
    let indexer = try makeIndexer(context, width: 24, features: 24, heads: 4, dim: 16, rope: 8)
    var ask = DiagnosisOptions()
    ask.k = [8]
    let before = try indexer.diagnose(heldOut, ask)
    let report = try indexer.fit(training, options())
    let after = try indexer.diagnose(heldOut, ask)
    #expect(report.lastLoss < 0.2 * report.firstLoss)
    #expect(after.divergence < 0.3 * before.divergence)
    #expect(after.at[0].indexer > 0.9 * after.at[0].oracle, "\(after)")
    #expect(before.at[0].indexer < 0.6 * before.at[0].oracle, "\(before)")
    #expect(report.warnings == [] && after.warnings == [.fewSequences, .fewRows])
    // The sparse stage goes on from there.
    var sparse = options(steps: 60)
    sparse.selected = 16
    sparse.learningRate = 1e-3
    let second = try indexer.fit(training, sparse)
    #expect(second.lastLoss < 1.2 * second.firstLoss)
    #expect(try indexer.diagnose(heldOut, ask).at[0].indexer > 0.9 * after.at[0].oracle)
  }

  @Test func theSameBitsForAnyNumberOfThreads() throws {
    var found: [[UInt32]] = []
    for threads: UInt32 in [1, 2, 3, 1] {
      let context = try makeContext(threads: threads)
      let capture = Capture(context)
      for seed: UInt64 in 0..<3 {
        try Host(tokens: 150, positions: (0..<100).map { Int32($0) }, seed: seed).add(to: capture, byHeads: seed == 1)
      }
      let indexer = try makeIndexer(context)
      var options = options(steps: 12)
      options.selected = found.count == 3 ? 0 : 10
      options.seed = 3
      _ = try indexer.fit(capture, options)
      found.append(try bits(indexer))
    }
    #expect(found[0] == found[1] && found[0] == found[2])
    #expect(found[0] != found[3])
  }

  /// Of hosts wide enough for several blocks of sums; what was fitted begins with what it has.
  @Test func theClosedStartHasTheSameBitsForAnyNumberOfThreads() throws {
    var found: [[UInt32]] = []
    for threads: UInt32 in [1, 2, 3] {
      let context = try makeContext(threads: threads)
      let capture = Capture(context)
      for seed: UInt64 in 0..<3 {
        let host = Host(
          tokens: 150, width: 100, features: 70, positions: (0..<100).map { Int32($0) }, allVisible: seed == 2,
          seed: seed)
        try host.add(to: capture, byHeads: seed == 1)
      }
      let indexer = try makeIndexer(context, width: 100, features: 70)
      let random = try bits(indexer)
      var options = options(steps: 1)
      options.learningRate = 1e-30
      #expect(try indexer.fit(capture, options).closedStart)
      found.append(try bits(indexer))
      #expect(found[found.count - 1] != random)
      #expect(try !indexer.fit(capture, options).closedStart)
      let other = try makeIndexer(context, width: 100, features: 70)
      options.randomStart = true
      #expect(try !other.fit(capture, options).closedStart)
    }
    #expect(found[0] == found[1] && found[0] == found[2])
  }

  @Test func whatStopsAFitChangesNothing() throws {
    let context = try makeContext()
    let capture = Capture(context)
    try Host().add(to: capture, byHeads: false)
    let indexer = try makeIndexer(context)
    let before = try bits(indexer)
    var wild = options()
    wild.learningRate = 1e5
    #expect(status { _ = try indexer.fit(capture, wild) } == .argument)
    #expect(try bits(indexer) == before)
    var stopped = options()
    stopped.progress = { _, step, _, _ in step == 5 ? 1 : 0 }
    #expect(status { _ = try indexer.fit(capture, stopped) } == .cancelled)
    #expect(try bits(indexer) == before)
    var cancelled = options()
    cancelled.user = Unmanaged.passUnretained(context).toOpaque()
    cancelled.progress = { user, _, _, _ in
      user.map { Unmanaged<Context>.fromOpaque($0).takeUnretainedValue().cancel() }
      return 0
    }
    #expect(status { _ = try indexer.fit(capture, cancelled) } == .cancelled)
    #expect(try bits(indexer) == before)
    #expect(status { _ = try indexer.fit(capture, options(steps: 2)) } == .ok)
    #expect(try bits(indexer) != before)
  }

  /// Attention without a pattern ends in a warning, not in a claim.
  @Test func nothingLearntIsSaid() throws {
    let context = try makeContext()
    let capture = Capture(context)
    for seed: UInt64 in 0..<9 {
      var random = SplitMix64(seed: seed)
      var attention = [Float](repeating: 0, count: 130 * 130)
      for row in 0..<130 { for s in 0...row { attention[row * 130 + s] = 1 / Float(row + 1) } }
      try withTensor(random.normals(130 * 20).map(Float.init), [130, 20]) { x in
        try withTensor(attention, [130, 130]) { p in
          var input = CaptureInput(hidden: x)
          input.attention = p
          try capture.add(input)
        }
      }
    }
    let indexer = try makeIndexer(context, features: 20)
    #expect(try indexer.fit(capture, options(steps: 20)).warnings == [.nothingLearnt])
  }

  @Test func wrongCapturesAreRefusedWhole() throws {
    let context = try makeContext()
    let capture = Capture(context)
    let indexer = try makeIndexer(context)
    #expect(status { _ = try indexer.fit(capture, options()) } == .argument)
    let host = Host()
    func add(
      _ change: (inout CaptureInput) throws -> Void, attention: [Float]? = nil, hidden: [Float]? = nil
    ) -> Status {
      status {
        try withTensor(hidden ?? host.hidden.map(Float.init), [host.tokens, host.width]) { x in
          let given = attention ?? host.attention.joined().map { Float($0) }
          try withTensor(given, [host.positions.count, host.tokens]) { p in
            try withTensor(host.query.map(Float.init), [host.positions.count, host.features]) { r in
              try host.positions.withUnsafeBufferPointer { rows in
                var input = CaptureInput(hidden: x)
                (input.features, input.attention, input.positions) = (r, p, rows.baseAddress)
                try change(&input)
                try capture.add(input)
              }
            }
          }
        }
      }
    }
    let right = host.attention.joined().map { Float($0) }
    #expect(add({ _ in }, attention: right.map { $0 * 0.9 }) == .argument)
    #expect(add({ _ in }, attention: right.map { -$0 }) == .argument)
    #expect(add({ _ in }, attention: right.map { _ in .nan }) == .argument)
    #expect(add({ _ in }, hidden: host.hidden.map { _ in Float.infinity }) == .argument)
    #expect(add({ $0.attention = nil }) == .argument)
    #expect(add({ $0.queries = $0.attention }) == .argument)
    #expect(add({ $0.positions = nil }) == .argument)  // rows 0...6 see less than the attention given
    #expect(add({ $0.features = $0.hidden }) == .argument)
    try withTensor([Float](repeating: 1, count: 40), [40, 1]) { thin in
      #expect(add({ $0.attention = thin }) == .argument)
    }
    #expect(capture.count == 0)
    #expect(add({ _ in }) == .ok)
    #expect(add({ $0.features = nil }) == .argument)  // 20 features after 12
    #expect(capture.count == 1 && capture.rows == 7)
    let other = try makeIndexer(context, width: 21)
    #expect(status { _ = try other.fit(capture, options()) } == .argument)
    var bad = options()
    bad.steps = 0
    #expect(status { _ = try indexer.fit(capture, bad) } == .argument)
  }

  @Test func everyAllocationMayFail() throws {
    var failures = 0
    for n in 1... {
      let allocator = Allocator()
      let context = try Context.create(allocator.options)
      let indexer = try makeIndexer(context)
      let capture = Capture(context)
      let before = try bits(indexer)
      allocator.fail(from: allocator.callCount + n)
      let result = status {
        try Host().add(to: capture, byHeads: true)
        _ = try indexer.fit(capture, options(steps: 2))
        _ = try indexer.diagnose(capture, DiagnosisOptions())
      }
      if result == .ok { break }
      failures += 1
      #expect(result == .memory)
      #expect(try bits(indexer) == before || capture.count == 1)
    }
    #expect(failures > 10)
  }

  @Test func filesRoundTripAndTheToyCheckpointsIndexersLoad() throws {
    let context = try makeContext()
    let (one, two) = (try makeIndexer(context), try makeIndexer(context, seed: 8))
    let path = "/tmp/tamis-fit-tests-\(UInt64.random(in: 0 ... .max)).safetensors"
    defer { unlink(path) }
    try IndexerFile.save([("a.", one), ("b.", two)], to: path, context)
    func load(_ path: String, _ prefix: String, rope: Int? = nil) throws -> LearnedIndexer {
      try IndexerFile.load(context, path: path, prefix: prefix, rope: rope) { rope throws(TamisError) in
        try LearnedIndexer.frequencies(rope: rope, base: 100)
      }
    }
    #expect(try bits(load(path, "a.")) == bits(one))
    #expect(try bits(load(path, "b.")) == bits(two))
    #expect(status { _ = try load(path, "c.") } == .format)
    #expect(status { _ = try load(path, "a.", rope: 7) } == .format)
    #expect(status { try IndexerFile.save([("a.", one), ("a.", two)], to: path, context) } == .argument)
    let toy = #filePath.split(separator: "/").dropLast(2).joined(separator: "/")
    let trained = try load(
      "/\(toy)/Fixtures/toy-v32/model.safetensors", "model.layers.1.self_attn.indexer.")
    #expect(trained.shape == (try IndexerShape(width: 192, features: 96, heads: 4, dim: 64, rope: 32)))
  }

  @Test func projectionsScoreAsTheReferenceDoes() throws {
    let context = try makeContext()
    let indexer = try makeIndexer(context)
    let host = Host()
    let parameters = try IndexerLoss.parameters(indexer)
    let reference = IndexerLoss(
      heads: 3, dim: 16, rope: 8, frequencies: indexer.frequencies.map(Double.init),
      hidden: rows(host.hidden.map(Float.init), host.width), features: rows(host.query.map(Float.init), host.features),
      positions: host.positions.map(Int.init), attention: [], allVisible: true, selected: 0)
    var keys = [Float](repeating: 0, count: host.tokens * 16)
    var (q, w) = ([Float](repeating: 0, count: 7 * 48), [Float](repeating: 0, count: 7 * 3))
    try withTensor(host.hidden.map(Float.init), [host.tokens, host.width]) { x in
      try view(&keys, [host.tokens, 16]) { key in
        try indexer.project(hidden: x, features: nil, positions: nil, q: nil, w: nil, key: key)
      }
    }
    let hidden = host.positions.flatMap {
      host.hidden[Int($0) * host.width..<(Int($0) + 1) * host.width].map(Float.init)
    }
    try withTensor(hidden, [7, host.width]) { x in
      try withTensor(host.query.map(Float.init), [7, host.features]) { r in
        try view(&q, [7, 3, 16]) { q in
          try view(&w, [7, 3]) { w in
            try indexer.project(hidden: x, features: r, positions: host.positions, q: q, w: w, key: nil)
          }
        }
      }
    }
    let exactKeys = (0..<host.tokens).map { reference.key(parameters, $0) }
    for row in 0..<7 {
      let exact = reference.scores(parameters, row: row, keys: exactKeys)
      for s in 0..<host.tokens {
        let score = (0..<3).reduce(0.0) { sum, h in
          let dot = (0..<16).reduce(0.0) { $0 + Double(q[(row * 3 + h) * 16 + $1]) * Double(keys[s * 16 + $1]) }
          return sum + Double(w[row * 3 + h]) * max(0, dot)
        }
        #expect(abs(score - exact[s]) <= 1e-5)
      }
    }
  }

  private func view(_ values: inout [Float], _ shape: [Int], _ body: (Tensor) throws -> Void) throws {
    try values.withUnsafeMutableBytes { bytes in
      var axes = SIMD4<Int>(repeating: 0)
      for (axis, size) in shape.enumerated() { axes[axis] = size }
      try body(
        Tensor(
          "view", data: bytes.baseAddress, dtype: DType.f32.rawValue, rank: shape.count, shape: axes,
          stride: SIMD4(repeating: 0), scale: nil, block: 0))
    }
  }
}
