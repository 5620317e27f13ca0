// Closed forms against sums done token by token, the break-even against its formula, and other architectures.
import TamisMeter
import TamisRuntime
import Testing

@Suite struct ArchitectureTests {
  @Test func deepSeekWork() throws {
    let model = try Architecture.deepSeekV32()
    #expect(model.indexFlopsPerPair == 61 * 16_384)
    #expect(model.absorbedFlopsPerPair == 61 * 278_528)
    #expect(model.expandedFlopsPerPair == 61 * 81_920)
    #expect(model.linearFlopsPerToken == 73.24e9)
    #expect(model.indexProjectionFlopsPerToken == 1_703_018_496 && model.indexProjectionBytes == 851_509_248)
    #expect(model.expansionFlops == 61 * 2 * 128 * 512 * 256)
    #expect(model.cacheBytesPerToken == 40_016)
    #expect(model.indexBytesPerToken == 8_052)
    #expect(model.absorbedFlopsPerPair * 131_072 / 1e9 > 2226 && model.absorbedFlopsPerPair * 131_072 / 1e9 < 2228)
  }

  @Test func sharedAndPooledIndexersCostLess() throws {
    let indexer = Architecture.Indexer(heads: 32, dim: 128, topK: 2048, layers: 20, pooling: 4, keyBytes: 132)
    let model = try small(indexer: indexer)
    #expect(model.indexFlopsPerPair == 2 * 32 * 128 * 20 / 4)
    #expect(model.indexBytesPerToken == 132 * 20 / 4)
  }

  @Test func refusesNonsense() throws {
    let good = Architecture.Indexer(heads: 4, dim: 64, topK: 128, layers: 4, keyBytes: 68)
    #expect(throws: Never.self) { try small(layers: 4, indexer: good) }
    #expect(throws: TamisError.self) { try small(layers: 0, indexer: good) }
    #expect(throws: TamisError.self) { try small(layers: 3, indexer: good) }
    #expect(throws: TamisError.self) { try small(layers: Int.max, indexer: good) }
    #expect(throws: TamisError.self) { try small(layers: 4, indexer: good, parameters: .nan) }
    #expect(throws: TamisError.self) { try small(layers: 4, indexer: good, parameters: -1) }
  }
}

private func small(
  layers: Int = 80, indexer: Architecture.Indexer, parameters: Double = 32e9
) throws(TamisError) -> Architecture {
  try Architecture(
    name: "small", layers: layers, heads: 64, absorbed: .init(key: 576, value: 512),
    expanded: .init(key: 256, value: 256),
    indexer: indexer, activeParameters: parameters, weightBytes: parameters, cacheBytes: 1152)
}

/// A machine with the same rate for everything, a chosen rate for the indexer, and no constant parts.
private func machine(
  indexerShare: Double = 1, masked: Bool = false, memory: Double = 0, overhead: Double = 0
) throws(TamisError) -> MachineProfile {
  let full = MachineProfile.Rate(.sixteenBit, 1)
  let phase = MachineProfile.Phase(
    linear: full, indexer: .init(.sixteenBit, indexerShare), dense: full, masked: masked ? full : nil, sparse: full,
    overhead: 0, sparseOverheadPerLayer: overhead)
  return try MachineProfile(
    name: "test", source: "", date: "", basis: .analytic, peaks: .init(eightBit: 0, sixteenBit: 1e12, float32: 0),
    memoryBytesPerSecond: memory, prefill: phase, decode: phase, pricePerHour: nil,
    trust: .init(low: 0.8, high: 1.2, ratio: 0, note: ""))
}

@Suite struct PredictionTests {
  @Test(arguments: [
    (0, 0, 0), (1, 0, 1), (2048, 0, 3), (2047, 0, 4), (2049, 2048, 1), (7000, 0, 10), (7000, 6999, 5), (7000, 7000, 1),
    (20_000, 1000, 100),
  ])
  func sumsAreExact(_ input: Int, _ cached: Int, _ output: Int) throws {
    let request = try Request(input: input, cached: cached, output: output)
    for profile in [
      try MachineProfile.h800(), try machine(indexerShare: 0.5, masked: true, memory: 1e11, overhead: 1e-6),
    ] {
      let predictor = Predictor(try Architecture.deepSeekV32(), on: profile)
      for mode in Mode.allCases {
        var expected = Work()
        for keys in cached..<input { expected = expected + predictor.curve(.prefill, mode).work(at: keys + 1) }
        for keys in input..<(input + output) { expected = expected + predictor.curve(.decode, mode).work(at: keys + 1) }
        let found = predictor.estimate(request, mode).total
        #expect(abs(found.seconds - expected.seconds) <= 1e-9 * expected.seconds, "\(mode)")
        #expect(abs(found.flops - expected.flops) <= 1e-9 * expected.flops, "\(mode)")
        #expect(abs(found.bytes - expected.bytes) <= 1e-9 * expected.bytes, "\(mode)")
      }
    }
  }

  /// A hundred million tokens are as quick to predict as one.
  @Test func longRequestsAreClosedForms() throws {
    let predictor = Predictor(try Architecture.deepSeekV32(), on: try MachineProfile.h800())
    let whole = predictor.estimate(try Request(input: 100_000_000, output: 0), .sparse).prefill
    let first = predictor.estimate(try Request(input: 60_000_000, output: 0), .sparse).prefill
    let rest = predictor.estimate(try Request(input: 100_000_000, cached: 60_000_000, output: 0), .sparse).prefill
    #expect(abs(first.seconds + rest.seconds - whole.seconds) <= 1e-12 * whole.seconds)
  }

  /// Published: k / (1 − r/17) for r = seconds of an indexer FLOP over seconds of a core FLOP, where the indexer's
  /// projections, a constant part, are not counted.
  @Test(arguments: [(1.0, 2177.0), (4.0, 2685.0), (8.0, 3895.0)])
  func breakEvenWithoutConstantPart(_ ratio: Double, _ published: Double) throws {
    let whole = try Architecture.deepSeekV32()
    let model = try Architecture(
      name: "", layers: whole.layers, heads: whole.heads, absorbed: whole.absorbed, expanded: whole.expanded,
      indexer: whole.indexer, activeParameters: whole.activeParameters, weightBytes: whole.weightBytes,
      cacheBytes: whole.cacheBytes)
    let predictor = Predictor(model, on: try machine(indexerShare: 1 / ratio))
    let found = try #require(predictor.breakEven(.decode).mid)
    #expect(abs(found - 2048 / (1 - ratio / 17)) < 1e-6)
    #expect(abs(found - published) <= 0.01 * published)
  }

  @Test func breakEvenCanBeNeverOrAlways() throws {
    let model = try Architecture.deepSeekV32()
    let slow = Predictor(model, on: try machine(indexerShare: 1.0 / 20))
    #expect(slow.breakEven(.decode).mid == nil)
    #expect(slow.breakEven(.wholePrompt).mid == nil)
    let far = Predictor(model, on: try machine(indexerShare: 1, overhead: 1))
    #expect(far.breakEven(.decode, within: 100_000).mid == nil)
    let tiny = try small(indexer: .init(heads: 1, dim: 1, topK: 1, layers: 1, keyBytes: 1))
    #expect(try #require(Predictor(tiny, on: try machine()).breakEven(.decode).mid) < 2)
  }

  /// The whole-prompt break-even against a search token by token.
  @Test(arguments: [0.0, 1e-7, 1e-5]) func paybackIsTheFirstCheaperPrompt(_ overhead: Double) throws {
    let predictor = Predictor(
      try Architecture.deepSeekV32(), on: try machine(indexerShare: 0.5, masked: true, overhead: overhead))
    let dense = predictor.curve(.prefill, .dense)
    let sparse = predictor.curve(.prefill, .sparse)
    var saved = 0.0
    var last: Int? = nil
    for keys in 0..<60_000 {
      saved += dense.seconds(at: keys) - sparse.seconds(at: keys)
      if saved <= 0 { last = nil } else if last == nil { last = keys + 1 }
    }
    let found = predictor.breakEven(.wholePrompt, within: 60_000).mid.map { Int($0) }
    #expect(found == last)
  }

  /// Automatic never costs more than sparse, and is cheaper exactly while nothing can be left out: then it makes no
  /// index queries either.
  @Test func automaticSkipsScoring() throws {
    let predictor = Predictor(try Architecture.deepSeekV32(), on: try MachineProfile.h800())
    for phase in [PhaseKind.prefill, .decode] {
      for keys in [0, 1, 100, 2047, 2048, 2049, 8192, 131_072] {
        let automatic = try predictor.estimate(at: keys, phase, .automatic).seconds.mid
        let sparse = try predictor.estimate(at: keys, phase, .sparse).seconds.mid
        #expect(automatic <= sparse)
        #expect((automatic < sparse) == (keys <= 2048), "\(phase) \(keys)")
      }
    }
  }

  @Test func memoryLimitsWhenItIsSlow() throws {
    let model = try Architecture.deepSeekV32()
    let decode = { (memory: Double, batch: Int) throws(TamisError) -> Double in
      Predictor(model, on: try machine(memory: memory), batch: batch).curve(.decode, .dense).seconds(at: 0)
    }
    #expect(try decode(0, 1) == 73.24e9 / 1e12)
    #expect(try decode(1e9, 1) == 36.62)
    #expect(try decode(1e9, 100) == 0.3662)
    #expect(try decode(1e12, 1) == 73.24e9 / 1e12)
  }

  /// By hand: 4 heads of 80 and 64 dims or of 48 and 32, two layers, W_UK and W_UV with 32,768 multiply-adds, 64 rows to
  /// an expansion; 1 GFLOP/s, 0.8 of it in the expanded form.
  @Test func theCheaperFormIsPredicted() throws {
    let model = try Architecture(
      name: "", layers: 2, heads: 4, absorbed: .init(key: 80, value: 64), expanded: .init(key: 48, value: 32),
      indexer: .init(heads: 1, dim: 16, topK: 8, layers: 2, keyBytes: 1), activeParameters: 100_000, weightBytes: 200_000,
      cacheBytes: 0, indexParameters: 5000, headParameters: 10_000, matrices: 30)
    #expect(model.expansionFlops == 65_536)
    let full = MachineProfile.Rate(.sixteenBit, 1)
    let phase = { (expanded: MachineProfile.Rate?, perMatrix: Double) in
      MachineProfile.Phase(
        linear: full, indexer: full, dense: full, masked: nil, sparse: full, expanded: expanded,
        linearBytesPerSecond: 1e9, secondsPerMatrix: perMatrix, overhead: 0, sparseOverheadPerLayer: 0,
        expandedOverheadPerLayer: expanded == nil ? 0 : 1e-6)
    }
    let machine = try MachineProfile(
      name: "", source: "", date: "", basis: .calibrated, peaks: .init(eightBit: 0, sixteenBit: 1e9, float32: 0),
      memoryBytesPerSecond: 1e12, prefill: phase(.init(.sixteenBit, 0.8), 0), decode: phase(nil, 1e-6),
      pricePerHour: nil, trust: .init(low: 1, high: 1, ratio: 0, note: ""))
    let predictor = Predictor(model, on: machine, chunk: 64)
    let nanoseconds = { (keys: Int, kind: PhaseKind, mode: Mode) -> Int in
      Int((predictor.curve(kind, mode).seconds(at: keys) * 1e9).rounded())
    }
    // Absorbed: 2 * 4 * (80 + 64) * 2 a pair; expanded: 2 * 4 * (48 + 32) * 2 and 65,536 / 64, at 0.8 of the rate. A
    // score takes 2 * 16 * 2, the indexer's projections 10,000.
    let (absorbed, expanded, score, index) = (2304, 2880, 64, 10_000)
    // A prompt without the head; expanded without the token's own products, with half a chunk of keys made beyond its
    // own (32,768 at 0.8) and a microsecond for each layer, so that the forms cross at 22,576 / 576 = 39.2 keys.
    let (plain, expanding) = (180_000, 180_000 - 65_536 + 40_960 + 2000)
    #expect(nanoseconds(39, .prefill, .dense) == expanding + 39 * expanded)
    #expect(nanoseconds(40, .prefill, .dense) == plain + 40 * absorbed)
    // 8 keys gathered of 100 that are scored; few enough are cheaper masked.
    #expect(nanoseconds(100, .prefill, .sparse) == plain + index + 8 * absorbed + 100 * score)
    #expect(nanoseconds(4, .prefill, .sparse) == expanding + index + 4 * (expanded + score))
    #expect(nanoseconds(4, .prefill, .automatic) == expanding + 4 * expanded)
    // 200,000 bytes at 1 GB/s are as long as 200,000 FLOP; the indexer's are held alike; 30 matrices of a microsecond.
    let token = 200_000 + 30_000
    #expect(nanoseconds(10, .decode, .dense) == token + 10 * absorbed)
    #expect(nanoseconds(10, .decode, .sparse) == token + index + 8 * absorbed + 10 * score)
    let eight = Predictor(model, on: machine, batch: 8).curve(.decode, .dense).seconds(at: 0)
    #expect((eight * 1e9).rounded() == 203_750)
    #expect(throws: TamisError.self) {
      try Architecture(
        name: "", layers: 1, heads: 1, absorbed: .init(key: 1, value: 1), expanded: .init(key: 1, value: 1),
        indexer: .init(heads: 1, dim: 1, topK: 1, layers: 1, keyBytes: 1), activeParameters: 1, weightBytes: 1,
        cacheBytes: 1, headParameters: 2)
    }
  }

  @Test func ratesAreCalibratedFromARun() throws {
    var sample = Sample()
    sample.flops = 3_000_000
    sample.wallNanoseconds = 2_000_000
    let peaks = MachineProfile.Peaks(eightBit: 6e9, sixteenBit: 3e9, float32: 0)
    #expect(try MachineProfile.Rate(.sixteenBit, measured: sample, peaks: peaks).efficiency == 0.5)
    #expect(throws: TamisError.self) { try MachineProfile.Rate(.float32, measured: sample, peaks: peaks) }
    #expect(throws: TamisError.self) { try MachineProfile.Rate(.eightBit, measured: Sample(), peaks: peaks) }
  }

  @Test func aPredictionCanBeReserved() throws {
    let predictor = Predictor(try Architecture.deepSeekV32(), on: try MachineProfile.h800())
    let request = try Request(input: 4000, output: 500)
    let estimate = predictor.estimate(request, .sparse)
    let amount = try estimate.most(request, money: nil)
    #expect(amount.tokens == 4500)
    #expect(Double(amount.nanoseconds ?? 0) >= estimate.seconds.high * 1e9)
    #expect(amount.flops.map { Double($0) } == estimate.total.flops.rounded(.up))
    let meter = try Meter(label: "m", budget: Amount(tokens: 9000, flops: (amount.flops ?? 0) * 2))
    _ = try meter.reserve(amount)
    _ = try meter.reserve(amount)
    #expect(throws: TamisError.self) { try meter.reserve(amount) }
  }

  @Test func refusesNonsense() throws {
    #expect(throws: TamisError.self) { try Request(input: -1, output: 0) }
    #expect(throws: TamisError.self) { try Request(input: 10, cached: 11, output: 0) }
    #expect(throws: TamisError.self) { try Request(input: Int.max, output: 1) }
    #expect(throws: TamisError.self) { try Request(input: 1, output: 1, batch: 0) }
    #expect(throws: TamisError.self) { try machine(indexerShare: 0) }
    #expect(throws: TamisError.self) { try machine(indexerShare: .nan) }
    #expect(throws: TamisError.self) { try machine(memory: -1) }
    #expect(throws: TamisError.self) { try machine(overhead: .infinity) }
    let predictor = Predictor(try Architecture.deepSeekV32(), on: try MachineProfile.h800())
    #expect(throws: TamisError.self) { try predictor.estimate(at: -1, .decode, .dense) }
    #expect(throws: TamisError.self) { try predictor.estimate(at: Int.max, .decode, .dense) }
  }
}
