// Index scores of every table this machine can run, against the Double reference and against each other: random
// shapes with tails in every direction, rows that end at an unmapped page, NaN and infinity, the extremes of int8,
// and the promise that the bits of one score do not depend on the call it was computed in. Also the choice of tables
// and their peak loops. It refuses to time anything.

import Glibc
import TamisKernels
import TamisReference
import TamisTestSupport
import Testing

/// Every table with index kernels of its own: of the two forms of "avx512", the machine's choice is one.
private let indexTables = usableISAs.flatMap { $0 == "avx512" ? [biasedQueries, biasedKeys] : [$0] }
private let biasedQueries = "avx512, queries biased"
private let biasedKeys = "avx512, keys biased"

private func indexTable(_ name: String) throws -> tk_table {
  switch name {
  case biasedQueries: try #require(tk_table_avx512()).pointee
  case biasedKeys: try #require(tk_table_zen()).pointee
  default: try #require(tk_choose(name)).pointee
  }
}

/// One type of operands: how a Double becomes an element and back.
private struct Element: Sendable, CustomTestStringConvertible {
  let type: Int32
  let testDescription: String
  let queryBytes, keyBytes: Int
  /// Largest relative error of one rounding in the dot product; 0: exact.
  let rounding: Double

  static let int8 = Element(type: Int32(TK_I8), testDescription: "int8", queryBytes: 1, keyBytes: 1, rounding: 0)
  static let bfloat16 = Element(
    type: Int32(TK_BF16), testDescription: "bf16", queryBytes: 2, keyBytes: 2, rounding: 0x1p-23)
  static let float = Element(
    type: Int32(TK_F32), testDescription: "f32", queryBytes: 4, keyBytes: 4, rounding: 0x1p-23)
  static let e4m3 = Element(
    type: Int32(TK_E4M3), testDescription: "e4m3", queryBytes: 2, keyBytes: 1, rounding: 0x1p-23)
  static let all = [int8, bfloat16, float, e4m3]

  /// Writes the nearest element and returns its value.
  private func store(_ x: Double, bytes: Int, to place: UnsafeMutableRawPointer) -> Double {
    switch (type, bytes) {
    case (Int32(TK_I8), _):
      let code = Int8(max(-128, min(127, (x * 100).rounded())))
      place.storeBytes(of: code, as: Int8.self)
      return Double(code)
    case (_, 1):
      let code = x.isNaN ? 0x7f : encodeE4M3(x)
      place.storeBytes(of: code, as: UInt8.self)
      return decodeE4M3(code)
    case (_, 2):
      let bits = encodeBF16(x)
      place.storeBytes(of: bits, as: UInt16.self)
      return decodeBF16(bits)
    default:
      place.storeBytes(of: Float(x), as: Float.self)
      return Double(Float(x))
    }
  }

  func storeQuery(_ x: Double, to place: UnsafeMutableRawPointer) -> Double {
    store(x, bytes: queryBytes, to: place)
  }
  func storeKey(_ x: Double, to place: UnsafeMutableRawPointer) -> Double { store(x, bytes: keyBytes, to: place) }
}

private struct Shape: Sendable, CustomTestStringConvertible {
  var heads, dim, count: Int
  var testDescription: String { "\(heads)x\(dim), \(count) keys" }
}

private struct AlignedMemory: ~Copyable {
  let base: UnsafeMutableRawPointer
  init(bytes: Int) { base = .allocate(byteCount: max(bytes, 64), alignment: 64) }
  deinit { base.deallocate() }
}

/// One query against `count` keys, with its exact scores.
private struct Problem {
  let element: Element
  let shape: Shape
  let query: [UInt8]
  let weights: [Float]
  let keys: GuardedMemory
  let firstKey: UnsafeMutableRawPointer
  let keyStride: Int
  let scales: [Float]?
  let scaleStep: Int
  let exact, magnitude: [Double]

  /// `special` of the key elements are NaN or infinite; `extreme`: int8 elements are -128 or 127 only.
  init(
    _ element: Element, _ shape: Shape, random: inout SplitMix64, special: Double = 0, extreme: Bool = false
  ) throws {
    (self.element, self.shape) = (element, shape)
    let (heads, dim, count) = (shape.heads, shape.dim, shape.count)
    let rowBytes = dim * element.keyBytes
    keyStride = rowBytes + element.keyBytes * [0, 0, 1, 24, 77][random.integer(below: 5)]
    let span = count == 0 ? 0 : (count - 1) * keyStride + rowBytes
    keys = try GuardedMemory(bytes: span)
    firstKey = keys.end - span
    scaleStep = 1 + random.integer(below: 3)
    scales = random.integer(below: 4) == 0 ? nil : (0..<count * scaleStep).map { _ in Float(random.uniform() + 0.1) }
    weights = random.normals(heads).map { Float($0) }

    let drawn = { (random: inout SplitMix64) -> Double in
      extreme ? (random.integer(below: 3) == 0 ? 1.27 : -1.28) : random.normal() * 0.5
    }
    var queryValues: [Double] = []
    var queryBytes = [UInt8](repeating: 0, count: heads * dim * element.queryBytes)
    queryBytes.withUnsafeMutableBytes { bytes in
      guard let base = bytes.baseAddress else { return }
      for i in 0..<heads * dim {
        queryValues.append(element.storeQuery(drawn(&random), to: base + i * element.queryBytes))
      }
    }
    query = queryBytes
    var keyValues: [Double] = []
    for key in 0..<count {
      for d in 0..<dim {
        var x = drawn(&random)
        if special > 0, random.uniform() < special { x = [Double.nan, .infinity, -.infinity][random.integer(below: 3)] }
        keyValues.append(element.storeKey(x, to: firstKey + key * keyStride + d * element.keyBytes))
      }
    }
    let keyScales = (0..<count).map { [scales, scaleStep] in Double(scales?[$0 * scaleStep] ?? 1) }
    exact = indexScores(
      queries: queryValues, weights: weights.map { Double($0) }, keys: keyValues, keyScales: keyScales, heads: heads,
      dim: dim)
    magnitude = indexScores(
      queries: queryValues.map(abs), weights: weights.map { Double(abs($0)) }, keys: keyValues.map(abs),
      keyScales: keyScales, heads: heads, dim: dim)
  }

  /// One rounding per element of a dot product and per head, four in the tree, one for the scale.
  func tolerance(_ key: Int) -> Double {
    let roundings = element.rounding * Double(shape.dim + 2) + 0x1p-24 * Double(shape.heads + 8)
    return magnitude[key] * roundings + 1e-30
  }

  /// The scores, computed in calls of the given sizes; checks that nothing is written outside the results.
  func scores(_ name: String, calls: [Int]) throws -> [Float] {
    let table = try indexTable(name)
    let (heads, dim) = (Int32(shape.heads), Int32(shape.dim))
    let packedBytes = table.index_query_bytes(element.type, heads, dim)
    #expect(packedBytes % 64 == 0)
    let packed = AlignedMemory(bytes: packedBytes + 64)
    packed.base.initializeMemory(as: UInt8.self, repeating: 0xa5, count: packedBytes + 64)
    query.withUnsafeBytes { query in
      table.index_pack_query(element.type, query.baseAddress, weights, heads, dim, packed.base)
    }
    #expect((0..<64).allSatisfy { packed.base.load(fromByteOffset: packedBytes + $0, as: UInt8.self) == 0xa5 })

    let guardCount = 16
    let out = AlignedMemory(bytes: (shape.count + guardCount) * 4)
    let results = out.base.initializeMemory(as: Float.self, repeating: -777, count: shape.count + guardCount)
    table.enter?()
    var from = 0
    for call in calls {
      // An output need not begin where a vector does: each call has its own aligned results.
      let part = AlignedMemory(bytes: (call + guardCount) * 4)
      let scores = part.base.initializeMemory(as: Float.self, repeating: -777, count: call + guardCount)
      withScales(from: from) { scale in
        table.index_scores(
          element.type, packed.base, heads, dim, firstKey + from * keyStride, keyStride, scale, scaleStep * 4,
          Int32(call), nil, scores)
      }
      #expect((call..<call + guardCount).allSatisfy { scores[$0] == -777 }, "\(name) wrote beyond \(call) scores")
      (results + from).update(from: scores, count: call)
      from += call
    }
    table.leave?()
    #expect(from == shape.count)
    return Array(UnsafeBufferPointer(start: results, count: shape.count))
  }

  private func withScales(from key: Int, _ body: (UnsafePointer<Float>?) -> Void) {
    guard let scales else { return body(nil) }
    scales.withUnsafeBufferPointer { body($0.baseAddress.map { $0 + key * scaleStep }) }
  }
}

/// Sizes that add up to count.
private func randomCalls(_ count: Int, random: inout SplitMix64) -> [Int] {
  var calls: [Int] = []
  var left = count
  while left > 0 {
    calls.append(min(left, 1 + random.integer(below: 50)))
    left -= calls[calls.count - 1]
  }
  return calls
}

/// Equal bits, any NaN being equal to any other.
private func sameBits(_ a: [Float], _ b: [Float]) -> Bool {
  a.count == b.count && zip(a, b).allSatisfy { $0.bitPattern == $1.bitPattern || ($0.isNaN && $1.isNaN) }
}

@Suite struct IndexKernelTests {
  /// The shapes of known models, then the edges: one of everything, one more and one less than a vector or a block.
  fileprivate static let shapes = [
    Shape(heads: 64, dim: 128, count: 41), Shape(heads: 32, dim: 128, count: 77), Shape(heads: 4, dim: 64, count: 200),
    Shape(heads: 1, dim: 1, count: 1), Shape(heads: 64, dim: 128, count: 0), Shape(heads: 17, dim: 65, count: 49),
    Shape(heads: 48, dim: 63, count: 50), Shape(heads: 65, dim: 31, count: 97), Shape(heads: 130, dim: 3, count: 130),
    Shape(heads: 16, dim: 257, count: 25), Shape(heads: 5, dim: 700, count: 18), Shape(heads: 128, dim: 64, count: 33),
  ]

  private func check(_ problem: Problem, _ table: String, random: inout SplitMix64) throws {
    let count = problem.shape.count
    let scores = try problem.scores(table, calls: count == 0 ? [] : [count])
    for key in 0..<count where problem.exact[key].isFinite {
      let error = abs(Double(scores[key]) - problem.exact[key])
      #expect(
        error <= problem.tolerance(key),
        "\(table) \(problem.element.testDescription) \(problem.shape.testDescription) key \(key)")
    }
    for key in 0..<count where !problem.exact[key].isFinite {
      let same = problem.exact[key].isNaN ? scores[key].isNaN : Double(scores[key]) == problem.exact[key]
      #expect(same, "\(table) \(problem.shape.testDescription) key \(key): \(scores[key]) for \(problem.exact[key])")
    }
    let parts = try problem.scores(table, calls: randomCalls(count, random: &random))
    #expect(sameBits(scores, parts), "\(table) \(problem.shape.testDescription): bits depend on the call")
  }

  @Test(arguments: indexTables, Element.all)
  fileprivate func scoresMatchTheReference(table: String, element: Element) throws {
    var random = SplitMix64(seed: 1)
    for shape in Self.shapes { try check(Problem(element, shape, random: &random), table, random: &random) }
  }

  @Test(arguments: indexTables, Element.all)
  fileprivate func randomShapes(table: String, element: Element) throws {
    var random = SplitMix64(seed: 2)
    for _ in 0..<12 {
      var shape = Shape(
        heads: 1 + random.integer(below: 130), dim: 1 + random.integer(below: 300), count: random.integer(below: 200))
      shape.count = min(shape.count, 1 + 300_000 / (shape.heads * shape.dim))
      try check(Problem(element, shape, random: &random), table, random: &random)
    }
  }

  /// A row with NaN or infinity has exactly the score that IEEE arithmetic gives the definition, whatever the
  /// padding; the rows beside it are unaffected.
  @Test(arguments: indexTables, [Element.bfloat16, .float, .e4m3])
  fileprivate func notFinite(table: String, element: Element) throws {
    var random = SplitMix64(seed: 3)
    for shape in Self.shapes {
      let problem = try Problem(element, shape, random: &random, special: 0.5 / Double(shape.dim))
      try check(problem, table, random: &random)
    }
  }

  /// Every E4M3 code, subnormals included, against one head of ones: exact.
  @Test(arguments: usableISAs) func everyE4M3Code(table name: String) throws {
    let table = try #require(tk_choose(name)).pointee
    let packed = AlignedMemory(bytes: table.index_query_bytes(Int32(TK_E4M3), 1, 1))
    table.index_pack_query(Int32(TK_E4M3), [encodeBF16(1)], [Float(1)], 1, 1, packed.base)
    let codes = (0...255).map { UInt8($0) }
    var scores = [Float](repeating: 0, count: 256)
    table.enter?()
    table.index_scores(Int32(TK_E4M3), packed.base, 1, 1, codes, 1, nil, 0, 256, nil, &scores)
    table.leave?()
    for code in codes {
      let value = decodeE4M3(code)
      let score = scores[Int(code)]
      #expect(value.isNaN ? score.isNaN : Double(score) == max(0, value), "\(name): code \(code)")
    }
  }

  /// int8 scores have the same bits in every table, at the extremes of int8 too.
  @Test(arguments: [false, true]) func int8BitsAreTheSameInEveryTable(extreme: Bool) throws {
    var random = SplitMix64(seed: 4)
    for shape in Self.shapes {
      let problem = try Problem(.int8, shape, random: &random, extreme: extreme)
      let calls = shape.count == 0 ? [] : [shape.count]
      let first = try problem.scores("portable", calls: calls)
      for table in indexTables.dropFirst() {
        #expect(
          try sameBits(first, problem.scores(table, calls: calls)), "\(table) \(shape.testDescription)")
      }
      for key in 0..<shape.count {
        #expect(abs(Double(first[key]) - problem.exact[key]) <= problem.tolerance(key))
      }
    }
  }
}

@Suite struct TableTests {
  @Test func theBestTableIsTheLastUsableOne() throws {
    let best = try #require(usableISAs.last)
    #expect(usableISAs.first == "portable")
    for cap in [nil, ""] as [String?] {
      #expect(try String(cString: #require(tk_choose(cap)).pointee.name) == best)
    }
    #expect(tk_usable(Int32(usableISAs.count)) == nil)
    #expect(tk_usable(-1) == nil)
  }

  @Test func aCapIsAnUpperBound() throws {
    for name in usableISAs { #expect(try String(cString: #require(tk_choose(name)).pointee.name) == name) }
    #if arch(x86_64)
      let order = ["portable", "avx2", "avxvnni", "avx512", "amx"]
    #elseif arch(arm64)
      let order = ["portable", "neon"]
    #else
      let order = ["portable"]
    #endif
    for (position, cap) in order.enumerated() {
      let chosen = try String(cString: #require(tk_choose(cap)).pointee.name)
      #expect(chosen == order[...position].last { usableISAs.contains($0) })
    }
    for unknown in ["sse2", "AVX2", "avx", "avx512 "] { #expect(tk_choose(unknown) == nil) }
  }

  @Test func tablesAreComplete() throws {
    for name in usableISAs {
      let table = try #require(tk_choose(name))
      #expect((table.pointee.enter == nil) == (table.pointee.leave == nil))
      #expect(table.pointee.expanded_cost > 0 && table.pointee.gather_cost >= 0)
      // Every entry but enter and leave is set: the table is a struct of words without gaps.
      let words = UnsafeRawPointer(table).assumingMemoryBound(to: UInt.self)
      let count = MemoryLayout<tk_table>.size / MemoryLayout<UInt>.size
      let optional = try [\tk_table.enter, \tk_table.leave].map {
        try #require(MemoryLayout<tk_table>.offset(of: $0)) / MemoryLayout<UInt>.size
      }
      for word in 0..<count where !optional.contains(word) { #expect(words[word] != 0, "\(name): entry \(word)") }
    }
  }

  @Test(arguments: usableISAs) func peakCountsItsWork(table name: String) throws {
    let table = try #require(tk_choose(name)).pointee
    table.enter?()
    for type in [TK_I8, TK_BF16, TK_F32, TK_E4M3] {
      let one = table.peak(Int32(type), 1)
      #expect(one > 0)
      #expect(table.peak(Int32(type), 1000) == one * 1000)
    }
    table.leave?()
  }

  @Test func cpuNameIsTerminatedAndTrimmed() {
    var text = [CChar](repeating: 1, count: 80)
    tk_cpu_name(&text, 80)
    let full = text.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
    #expect(!full.isEmpty && full.first != " " && full.last != " ")
    var short = [CChar](repeating: 1, count: 8)
    tk_cpu_name(&short, 4)
    #expect(short[3] == 0 && short[4] == 1)
    #expect(short.withUnsafeBufferPointer { String(cString: $0.baseAddress!) } == String(full.prefix(3)))
    var none: [CChar] = [1]
    tk_cpu_name(&none, 0)
    #expect(none[0] == 1)
  }
}
