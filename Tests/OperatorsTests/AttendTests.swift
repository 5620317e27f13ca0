// attend, the mass of its keys, merge, project and quantise: against the Double reference on every instruction set, and
// to the bit across threads and batches.

import Glibc
import TamisOperators
import TamisReference
import TamisRuntime
import TamisTestSupport
import Testing

private struct Case {
  let n: Int
  let m: Int
  let heads: Int
  let kvHeads: Int
  let keyDim: Int
  let valueDim: Int
  let key: DType
  let latent: Bool
  var k: Int? = nil
  var sink = false
}

private struct Run {
  let c: Case
  let q: Buffer
  let key: Buffer
  let value: Buffer?
  let indices: Buffer?
  let sink: [Float]

  init(_ c: Case, seed: UInt64) {
    self.c = c
    var random = SplitMix64(seed: seed)
    q = Buffer(c.key == .f32 || c.key == .f16 ? .f32 : .bf16, [c.n, c.heads, c.keyDim],
      random.normals(c.n * c.heads * c.keyDim, scale: 1))
    let shape = c.key == .mla656 ? [c.m, c.keyDim] : [c.m, c.kvHeads, c.keyDim]
    key = Buffer(c.key, shape, random.normals(c.m * c.kvHeads * c.keyDim, scale: 1))
    value = c.latent
      ? nil : Buffer(c.key, [c.m, c.kvHeads, c.valueDim], random.normals(c.m * c.kvHeads * c.valueDim, scale: 1))
    if let k = c.k {
      let chosen = Buffer(.i32, [c.n, k])
      let ints = chosen.tensor.data.assumingMemoryBound(to: Int32.self)
      for i in 0..<c.n * k { ints[i] = random.integer(below: 6) == 0 ? -1 : Int32(random.integer(below: c.m)) }
      indices = chosen
    } else {
      indices = nil
    }
    sink = (0..<c.heads).map { _ in Float(random.normal()) }
  }

  func attend(_ context: Context) throws -> (out: Buffer, lse: Buffer) {
    let out = Buffer(.f32, [c.n, c.heads, c.valueDim])
    let lse = Buffer(.f32, [c.n, c.heads])
    try sink.withUnsafeBufferPointer { sink in
      let shape = try Attention(
        context, q: q.tensor, kvHeads: c.kvHeads, keyDim: c.keyDim, valueDim: c.valueDim, keyDType: c.key, scale: 0,
        sink: c.sink ? sink.baseAddress : nil)
      let visible = try Visible(counts: nil, all: false, queries: c.n, keys: c.m)
      let job = AttendJob(
        keys: Rows(key.tensor), values: value.map { Rows($0.tensor) }, firstQuery: 0, queries: c.n, visible: visible)
      try Attend.run(
        context, shape, q: q.tensor, jobs: [job], indices: indices?.tensor, out: out.tensor, lse: lse.tensor)
    }
    #expect(out.guardIntact && lse.guardIntact)
    return (out, lse)
  }

  /// What the kernels multiply with.
  func operands(_ buffer: Buffer) -> [Double] {
    let direct = c.key == .bf16 || c.key == .f32 || c.key == .f16
    return direct ? buffer.values : buffer.values.map(roundedToBF16)
  }

  func reference() -> Attended {
    return TamisReference.attend(
      AttentionShape(
        queries: c.n, keys: c.m, heads: c.heads, keyHeads: c.kvHeads, keyDim: c.keyDim, valueDim: c.valueDim),
      queries: q.values, keys: operands(key), values: value.map(operands),
      scale: 1 / Double(c.keyDim).squareRoot(), indices: indices?.ints, visible: nil,
      sink: c.sink ? sink.map(Double.init) : nil)
  }
}

extension Run {
  /// The keys of each row as they are listed, and their softmax probabilities averaged over heads.
  func referenceMass() -> [[(key: Int, mass: Double)]] {
    let (queries, keys) = (q.values, operands(key))
    return (0..<c.n).map { row in
      let k = c.k ?? 0
      let listed = indices.map { Array($0.ints[row * k..<(row + 1) * k]) } ?? Array(0...c.m - c.n + row)
      var mass = Array(repeating: 0.0, count: listed.count)
      for head in 0..<c.heads {
        let logits = listed.map { s -> Double in
          guard s >= 0 else { return -.infinity }
          let at = (row * c.heads + head) * c.keyDim
          let from = (s * c.kvHeads + head / (c.heads / c.kvHeads)) * c.keyDim
          return zip(queries[at..<at + c.keyDim], keys[from..<from + c.keyDim]).reduce(0) { $0 + $1.0 * $1.1 }
            / Double(c.keyDim).squareRoot()
        }
        let sum = (logits + (c.sink ? [Double(sink[head])] : [])).reduce(0) { $0 + exp($1) }
        for (i, logit) in logits.enumerated() { mass[i] += exp(logit) / sum / Double(c.heads) }
      }
      return Array(zip(listed, mass))
    }
  }

  func mass(_ context: Context, lse: Buffer) throws -> [[(key: Int, mass: Float)]] {
    var rows: [[(key: Int, mass: Float)]] = []
    let shape = try Attention(
      context, q: q.tensor, kvHeads: c.kvHeads, keyDim: c.keyDim, valueDim: c.valueDim, keyDType: c.key, scale: 0,
      sink: nil)
    let job = AttendJob(
      keys: Rows(key.tensor), values: nil, firstQuery: 0, queries: c.n,
      visible: try Visible(counts: nil, all: false, queries: c.n, keys: c.m))
    try AttentionMass.run(context, shape, q: q.tensor, jobs: [job], indices: indices?.tensor, lse: lse.tensor) {
      number, keys, mass in
      #expect(number == 0)
      rows.append(mass.enumerated().map { i, mass in (keys.map { Int($0[i]) } ?? i, mass) })
    }
    return rows
  }
}

private let cases: [Case] = [
  Case(n: 1, m: 300, heads: 16, kvHeads: 1, keyDim: 576, valueDim: 512, key: .bf16, latent: true, k: 128),
  Case(n: 3, m: 200, heads: 16, kvHeads: 1, keyDim: 576, valueDim: 512, key: .mla656, latent: true, k: 64, sink: true),
  Case(n: 5, m: 1300, heads: 8, kvHeads: 2, keyDim: 64, valueDim: 64, key: .bf16, latent: false),
  Case(n: 20, m: 1100, heads: 6, kvHeads: 3, keyDim: 20, valueDim: 12, key: .f32, latent: false, sink: true),
  Case(n: 4, m: 60, heads: 5, kvHeads: 1, keyDim: 33, valueDim: 17, key: .f16, latent: true),
  Case(n: 2, m: 90, heads: 4, kvHeads: 4, keyDim: 32, valueDim: 48, key: .i8, latent: false, k: 40),
  Case(n: 2, m: 90, heads: 4, kvHeads: 2, keyDim: 32, valueDim: 48, key: .f8e4m3, latent: false),
  Case(n: 2, m: 3000, heads: 4, kvHeads: 1, keyDim: 40, valueDim: 32, key: .bf16, latent: true, k: 2500),
]

@Test(arguments: usableISAs)
func attendEqualsTheReference(isa: String) throws {
  for (seed, c) in cases.enumerated() {
    let run = Run(c, seed: UInt64(seed + 11))
    let (out, lse) = try run.attend(makeContext(isa, threads: 2))
    let expected = run.reference()
    // BF16 softmax weights: 2^-9 relative each, so well inside 1 % of the largest value.
    let exact = c.key == .f32 || c.key == .f16
    let tolerance = (expected.out.map(abs).max() ?? 1) * (exact ? 1e-5 : 8e-3)
    for (i, (got, want)) in zip(out.floats, expected.out).enumerated() where abs(Double(got) - want) > tolerance {
      Issue.record("case \(seed) out[\(i)] is \(got), expected \(want)")
      break
    }
    for (got, want) in zip(lse.floats, expected.lse) {
      #expect(got.isFinite ? abs(Double(got) - want) <= (exact ? 1e-4 : 2e-2) : Double(got) == want)
    }
  }
}

@Test(arguments: usableISAs)
func massIsTheSoftmax(isa: String) throws {
  for (seed, c) in cases.enumerated() {
    let run = Run(c, seed: UInt64(seed + 51))
    let context = makeContext(isa, threads: 2)
    let mass = try run.mass(context, lse: run.attend(context).lse)
    let expected = run.referenceMass()
    try #require(mass.count == expected.count)
    let tolerance = c.key == .f32 || c.key == .f16 ? 1e-5 : 1e-3
    for (got, want) in zip(mass, expected) {
      #expect(got.map(\.key) == want.map(\.key))
      let worst = zip(got, want).map { abs(Double($0.mass) - $1.mass) }.max() ?? 0
      #expect(worst <= tolerance, "case \(seed)")
    }
    let alone = try run.mass(makeContext(isa), lse: run.attend(context).lse)
    #expect(mass.map { $0.map(\.mass.bitPattern) } == alone.map { $0.map(\.mass.bitPattern) })
  }
}

@Test(arguments: usableISAs)
func attendHasTheSameBitsOnAnyThreadsAndInAnyBatch(isa: String) throws {
  for (seed, c) in cases.enumerated() {
    let run = Run(c, seed: UInt64(seed + 31))
    let first = try run.attend(makeContext(isa))
    for threads: UInt32 in [2, 3, 16] {
      let again = try run.attend(makeContext(isa, threads: threads))
      #expect(again.out.bits == first.out.bits, "case \(seed), \(threads) threads")
      #expect(again.lse.bits == first.lse.bits)
    }
  }
}

/// A row alone, with the keys it sees, gives the bits it has in the batch.
@Test(arguments: usableISAs)
func rowsDoNotDependOnTheBatch(isa: String) throws {
  let context = makeContext(isa, threads: 2)
  let c = Case(n: 30, m: 1060, heads: 4, kvHeads: 1, keyDim: 40, valueDim: 24, key: .bf16, latent: true)
  let run = Run(c, seed: 77)
  let all = try run.attend(context).out.bits
  let width = c.heads * c.valueDim
  for i in [0, 1, 13, 29] {
    let out = Buffer(.f32, [1, c.heads, c.valueDim])
    let q = try Tensor(
      "q", data: run.q.tensor.row(i), dtype: DType.bf16.rawValue, rank: 3, shape: SIMD4(1, c.heads, c.keyDim, 0),
      stride: SIMD4(repeating: 0), scale: nil, block: 0)
    let seen = c.m - c.n + i + 1
    let key = try Tensor(
      "key", data: run.key.tensor.data, dtype: DType.bf16.rawValue, rank: 3, shape: SIMD4(seen, 1, c.keyDim, 0),
      stride: SIMD4(repeating: 0), scale: nil, block: 0)
    let shape = try Attention(
      context, q: q, kvHeads: 1, keyDim: c.keyDim, valueDim: c.valueDim, keyDType: .bf16, scale: 0, sink: nil)
    let job = AttendJob(
      keys: Rows(key), values: nil, firstQuery: 0, queries: 1,
      visible: try Visible(counts: nil, all: false, queries: 1, keys: seen))
    try Attend.run(context, shape, q: q, jobs: [job], indices: nil, out: out.tensor, lse: nil)
    #expect(out.bits == Array(all[i * width..<(i + 1) * width]), "row \(i)")
  }
}

/// Selecting every visible key gives the bits of dense attention (pitfalls 3 and 13).
@Test(arguments: usableISAs)
func selectingEverythingIsDense(isa: String) throws {
  let c = Case(n: 6, m: 1500, heads: 4, kvHeads: 1, keyDim: 64, valueDim: 32, key: .bf16, latent: true)
  let run = Run(c, seed: 5)
  let context = makeContext(isa, threads: 2)
  let dense = try run.attend(context)
  let indices = Buffer(.i32, [c.n, c.m])
  let ints = indices.tensor.data.assumingMemoryBound(to: Int32.self)
  for i in 0..<c.n {
    for s in 0..<c.m { ints[i * c.m + s] = s < c.m - c.n + i + 1 ? Int32(s) : -1 }
  }
  let out = Buffer(.f32, [c.n, c.heads, c.valueDim])
  let shape = try Attention(
    context, q: run.q.tensor, kvHeads: 1, keyDim: c.keyDim, valueDim: c.valueDim, keyDType: .bf16, scale: 0, sink: nil)
  let job = AttendJob(
    keys: Rows(run.key.tensor), values: nil, firstQuery: 0, queries: c.n,
    visible: try Visible(counts: nil, all: false, queries: c.n, keys: c.m))
  try Attend.run(context, shape, q: run.q.tensor, jobs: [job], indices: indices.tensor, out: out.tensor, lse: nil)
  #expect(out.bits == dense.out.bits)
}

/// Pitfall 32: a row without keys gives zeros and -infinity, with a sink the sink's logit.
@Test(arguments: usableISAs)
func rowsWithoutKeysGiveZero(isa: String) throws {
  for sink in [false, true] {
    var c = Case(n: 2, m: 10, heads: 3, kvHeads: 1, keyDim: 8, valueDim: 8, key: .bf16, latent: true, k: 4)
    c.sink = sink
    let run = Run(c, seed: 1)
    let ints = run.indices?.tensor.data.assumingMemoryBound(to: Int32.self)
    for j in 0..<4 { ints?[j] = -1 }
    for j in 4..<8 { ints?[j] = 3 }
    let (out, lse) = try run.attend(makeContext(isa))
    #expect(out.floats.prefix(24).allSatisfy { $0 == 0 })
    #expect(lse.floats.prefix(3).elementsEqual(sink ? run.sink : [-.infinity, -.infinity, -.infinity]))
    #expect(out.floats.suffix(24).contains { $0 != 0 })
  }
}

@Test(arguments: usableISAs)
func mergeOfTwoHalvesIsTheWhole(isa: String) throws {
  let context = makeContext(isa)
  let c = Case(n: 1, m: 200, heads: 4, kvHeads: 1, keyDim: 16, valueDim: 16, key: .f32, latent: true, k: 120)
  let run = Run(c, seed: 8)
  let expected = run.reference()
  let ints = run.indices?.tensor.data.assumingMemoryBound(to: Int32.self)
  let kept = (0..<120).map { ints?[$0] ?? -1 }
  for j in 60..<120 { ints?[j] = -1 }
  let first = try run.attend(context)
  for j in 0..<120 { ints?[j] = j < 60 ? -1 : kept[j] }
  let second = try run.attend(context)
  try Merge.run(
    context, other: second.out.tensor, otherLSE: second.lse.tensor, out: first.out.tensor, lse: first.lse.tensor)
  for (got, want) in zip(first.out.floats, expected.out) { #expect(abs(Double(got) - want) < 1e-5) }
  for (got, want) in zip(first.lse.floats, expected.lse) { #expect(abs(Double(got) - want) < 1e-5) }
}

@Test(arguments: usableISAs)
func projectEqualsTheReference(isa: String) throws {
  var random = SplitMix64(seed: 4)
  for (rows, inputs, outputs, weight) in [
    (1, 300, 70, DType.bf16), (17, 64, 130, .bf16), (3, 37, 5, .f32), (40, 256, 64, .f8e4m3), (2, 128, 3, .i8),
    (2, 50, 65, .f16),
  ] {
    let x = Buffer(.bf16, [rows, inputs], random.normals(rows * inputs, scale: 1))
    let w = Buffer(weight, [outputs, inputs], random.normals(outputs * inputs, scale: 0.1), block: weight.isScaled ? 32 : 0)
    let out = Buffer(.f32, [rows, outputs])
    try Project.run(makeContext(isa, threads: 2), x: x.tensor, weight: w.tensor, out: out.tensor)
    let exact = weight == .f32 || weight == .f16
    let weights = exact || weight == .bf16 ? w.values : w.values.map(roundedToBF16)
    let expected = project(x.values, weight: weights, inputs: inputs)
    let scale = expected.map(abs).max() ?? 1
    for (got, want) in zip(out.floats, expected) { #expect(abs(Double(got) - want) <= 1e-4 * scale) }
    #expect(out.guardIntact)
  }
}

/// The bits of a row do not depend on the rows beside it (continuous batching).
@Test(arguments: usableISAs)
func projectedRowsDoNotDependOnTheBatch(isa: String) throws {
  var random = SplitMix64(seed: 6)
  let context = makeContext(isa, threads: 2)
  for weight in [DType.bf16, .f32] {
    let x = Buffer(.bf16, [37, 200], random.normals(37 * 200, scale: 1))
    let w = Buffer(weight, [90, 200], random.normals(90 * 200, scale: 1))
    let all = Buffer(.f32, [37, 90])
    try Project.run(context, x: x.tensor, weight: w.tensor, out: all.tensor)
    for row in [0, 20, 36] {
      let one = try Tensor(
        "x", data: x.tensor.row(row), dtype: DType.bf16.rawValue, rank: 2, shape: SIMD4(1, 200, 0, 0),
        stride: SIMD4(repeating: 0), scale: nil, block: 0)
      let out = Buffer(.f32, [1, 90])
      try Project.run(context, x: one, weight: w.tensor, out: out.tensor)
      #expect(out.bits == Array(all.bits[row * 90..<(row + 1) * 90]))
    }
  }
}

@Test(arguments: usableISAs)
func quantiseEqualsTheReference(isa: String) throws {
  let context = makeContext(isa, threads: 2)
  var random = SplitMix64(seed: 12)
  let x = Buffer(.f32, [50, 128])
  x.set(random.normals(50 * 128, scale: 3))
  for powerOfTwo in [false, true] {
    for hadamard in [false, true] {
      let out = Buffer(.f8e4m3, [50, 128], block: 128)
      try Quantize.run(
        context, x: x.tensor, how: Quantization(powerOfTwo: powerOfTwo, hadamard: hadamard), out: out.tensor)
      var rows = x.values
      if hadamard { rows = rotateHadamard(rows, length: 128) }
      let expected = quantizeE4M3(rows, block: 128, powerOfTwo: powerOfTwo)
      let codes = out.tensor.data.assumingMemoryBound(to: UInt8.self)
      let differing = expected.codes.indices.filter { expected.codes[$0] != codes[$0] }
      // The rotation is done in float: a code on a rounding boundary may differ by one.
      #expect(differing.count <= (hadamard ? 40 : 0))
      for row in 0..<50 {
        let scale = Double(out.tensor.scale?[row] ?? 0)
        #expect(abs(scale - expected.scales[row]) <= 1e-6 * expected.scales[row])
      }
    }
  }
}

@Test func attendCountsExactly() throws {
  let context = makeContext("portable", threads: 2)
  let c = Case(n: 4, m: 100, heads: 2, kvHeads: 1, keyDim: 8, valueDim: 4, key: .f32, latent: true, k: 10)
  let run = Run(c, seed: 3)
  let valid = run.indices?.ints.filter { $0 >= 0 }.count ?? 0
  _ = try run.attend(context)
  let sample = context.counters.snapshot(.attend)
  let attended = UInt64(valid)
  let dense: UInt64 = 97 + 98 + 99 + 100
  #expect(sample.keysAttended == attended)
  #expect(sample.keysDense == dense)
  #expect(sample.flops == attended * 48)  // two heads, two operations, 8 + 4 dims
  #expect(sample.denseFlops == dense * 48)
}

@Test func outputsMayNotShareMemoryWithInputsOrTheirScales() throws {
  let x = Buffer(.f32, [4, 16])
  let inX = x.tensor.data.assumingMemoryBound(to: Float.self)
  let codes = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 64)
  defer { codes.deallocate() }
  func quantize(scale: UnsafeMutablePointer<Float>, data: UnsafeMutableRawPointer) -> Status? {
    do throws(TamisError) {
      let out = try Tensor(
        "out", data: data, dtype: DType.i8.rawValue, rank: 2, shape: SIMD4(4, 16, 0, 0),
        stride: SIMD4(repeating: 0), scale: scale, block: 0)
      try Quantize.run(
        Context.unmetered, x: x.tensor, how: Quantization(powerOfTwo: false, hadamard: false), out: out)
      return nil
    } catch {
      return error.status
    }
  }
  let scales = UnsafeMutablePointer<Float>.allocate(capacity: 4)
  defer { scales.deallocate() }
  #expect(quantize(scale: inX + 8, data: codes) == .argument)
  #expect(quantize(scale: scales, data: x.tensor.data + 60) == .argument)
  #expect(quantize(scale: scales, data: codes) == nil)
}
