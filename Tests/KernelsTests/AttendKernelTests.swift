// Attend kernels of every table this machine can run, against plain Double arithmetic: shapes with tails in every
// direction, rows that end at an unmapped page, repeated rows, scores beyond any exponential, NaN and infinity kept
// to their columns, the join of partial results with absent sides, and the promise that a column's bits do not
// depend on its neighbours. It refuses to time anything.

import Glibc
import TamisKernels
import TamisReference
import TamisTestSupport
import Testing

private struct Shape: Sendable, CustomTestStringConvertible {
  let columns, keyDim, valueDim, count: Int
  var scale: Double = 1
  var testDescription: String { "\(columns)x\(keyDim)x\(valueDim) of \(count)" }
}

private struct Result {
  var out: [Float]
  var max: [Float]
  var sum: [Float]
}

/// A chunk's operands: queries [columns, keyDim], keys and values one row each, as the element type holds them.
private struct Problem {
  let type: Int32
  let shape: Shape
  var queries: [[Double]]
  var keys: [[Double]]
  var values: [[Double]]

  var size: Int { type == Int32(TK_F32) ? 4 : 2 }
  func rounded(_ x: Double) -> Double { type == Int32(TK_F32) ? roundedToFloat(x) : roundedToBF16(x) }

  init(type: Int32, shape: Shape, seed: UInt64) {
    self.type = type
    self.shape = shape
    (queries, keys, values) = ([], [], [])
    var random = SplitMix64(seed: seed)
    func row(_ n: Int) -> [Double] { (0..<n).map { _ in rounded(random.normal()) } }
    queries = (0..<shape.columns).map { _ in row(shape.keyDim) }
    keys = (0..<shape.count).map { _ in row(shape.keyDim) }
    values = (0..<shape.count).map { _ in row(shape.valueDim) }
  }

  /// Rows back to back, the last one ending at an unmapped page.
  private func place(_ rows: [[Double]], width: Int) throws -> (memory: GuardedMemory, rows: [UnsafeRawPointer?]) {
    let memory = try GuardedMemory(bytes: rows.count * width * size, alignment: size)
    for (i, row) in rows.enumerated() {
      for (j, x) in row.enumerated() {
        let at = memory.base + (i * width + j) * size
        if size == 4 {
          at.storeBytes(of: Float(x), as: Float.self)
        } else {
          at.storeBytes(of: encodeBF16(x), as: UInt16.self)
        }
      }
    }
    return (memory, rows.indices.map { UnsafeRawPointer(memory.base + $0 * width * size) })
  }

  /// Runs the kernel; `picks` lists the keys of the chunk (all, in order, when nil).
  func run(_ name: String, columns chosen: Range<Int>? = nil, picks: [Int]? = nil) throws -> Result {
    let table = try #require(tk_choose(name)).pointee
    let part = chosen ?? 0..<shape.columns
    let (columns, keyDim, valueDim) = (Int32(part.count), Int32(shape.keyDim), Int32(shape.valueDim))
    let query = try place(Array(queries[part]), width: shape.keyDim)
    let key = try place(keys, width: shape.keyDim)
    let value = try place(values, width: shape.valueDim)
    let order = picks ?? Array(0..<shape.count)
    let packed = try GuardedMemory(bytes: table.attend_query_bytes(type, columns, keyDim), alignment: 64)
    let scratch = try GuardedMemory(
      bytes: table.attend_scratch_bytes(type, columns, Int32(order.count), keyDim, valueDim), alignment: 64)
    let out = try GuardedMemory(bytes: part.count * shape.valueDim * 4, alignment: 64)
    let max = try GuardedMemory(bytes: part.count * 4, alignment: 64)
    let sum = try GuardedMemory(bytes: part.count * 4, alignment: 64)
    if let enter = table.enter { enter() }
    table.attend_pack_query(type, query.rows[0], shape.keyDim * size, columns, keyDim, packed.base)
    table.attend_chunk(
      type, packed.base, columns, keyDim, valueDim, order.map { key.rows[$0] }, order.map { value.rows[$0] },
      Int32(order.count), Float(shape.scale), out.base.assumingMemoryBound(to: Float.self),
      max.base.assumingMemoryBound(to: Float.self), sum.base.assumingMemoryBound(to: Float.self), scratch.base)
    if let leave = table.leave { leave() }
    return withExtendedLifetime((query.memory, key.memory, value.memory)) {
      func floats(_ memory: GuardedMemory, _ n: Int) -> [Float] {
        (0..<n).map { memory.base.load(fromByteOffset: $0 * 4, as: Float.self) }
      }
      return Result(
        out: floats(out, part.count * shape.valueDim), max: floats(max, part.count), sum: floats(sum, part.count))
    }
  }

  /// Compares one column with Double arithmetic. Weights: a score may be off by one rounding of each of its keyDim
  /// products and sums, which moves p by that much relatively; rounding p to bfloat16 moves it by 2^-9, and the
  /// quotient by twice that at most; the sums over keys and exp itself add a few units of float.
  func check(_ result: Result, column: Int, picks: [Int]? = nil, _ label: String) {
    let scale = Double(Float(shape.scale))
    let order = picks ?? Array(0..<shape.count)
    var scores: [Double] = []
    var slack = 0.0
    for i in order {
      var dot = 0.0
      var size = 0.0
      for (q, k) in zip(queries[column], keys[i]) {
        dot += q * k
        size += abs(q * k)
      }
      scores.append(dot * scale)
      slack = Swift.max(slack, abs(scale) * size * Double(shape.keyDim + 4) * 0x1p-24)
    }
    let max = scores.max() ?? 0
    let p = scores.map { exp($0 - max) }
    let sum = p.reduce(0, +)
    let relative =
      2 * slack + Double(order.count + 16) * 0x1p-24 + (type == Int32(TK_F32) ? 0 : 0x1p-9 + 0x1p-16)
    expect(Double(result.max[column]), max, within: slack + abs(max) * 0x1p-22, "\(label) max")
    expect(Double(result.sum[column]), sum, within: sum * relative, "\(label) sum")
    for e in 0..<shape.valueDim {
      var exact = 0.0
      var size = 0.0
      for (i, weight) in zip(order, p) {
        exact += weight * values[i][e]
        size += weight * abs(values[i][e])
      }
      let quotient = Double(result.out[column * shape.valueDim + e]) / Double(result.sum[column])
      expect(quotient, exact / sum, within: 2 * relative * size / sum + 1e-30, "\(label) element \(e)")
    }
  }

  private func expect(_ x: Double, _ exact: Double, within bound: Double, _ label: String) {
    if !(abs(x - exact) <= bound) { Issue.record("\(label): \(x), exactly \(exact), bound \(bound)") }
  }
}

private let types = [Int32(TK_BF16), Int32(TK_F32)]

@Suite struct AttendKernelTests {
  private static let shapes: [Shape] = [
    Shape(columns: 1, keyDim: 1, valueDim: 1, count: 1),
    Shape(columns: 2, keyDim: 3, valueDim: 5, count: 2, scale: 0.7),
    Shape(columns: 4, keyDim: 128, valueDim: 128, count: 70, scale: 0.09),
    Shape(columns: 7, keyDim: 33, valueDim: 35, count: 33, scale: 0.2),
    Shape(columns: 8, keyDim: 300, valueDim: 100, count: 210, scale: 0.06),
    Shape(columns: 5, keyDim: 129, valueDim: 70, count: 193, scale: 0.09),
    Shape(columns: 16, keyDim: 64, valueDim: 32, count: 64, scale: -0.125),
    Shape(columns: 17, keyDim: 31, valueDim: 65, count: 31, scale: 0.2),
    Shape(columns: 33, keyDim: 40, valueDim: 16, count: 260, scale: 0.15),
    Shape(columns: 70, keyDim: 17, valueDim: 18, count: 9, scale: 0.3),
    Shape(columns: 36, keyDim: 576, valueDim: 512, count: 33, scale: 0.04),
    Shape(columns: 131, keyDim: 12, valueDim: 9, count: 40, scale: 0.3),
    Shape(columns: 3, keyDim: 200, valueDim: 7, count: 520, scale: 0.07),
  ]

  @Test(arguments: usableISAs, shapes)
  fileprivate func matchesDoubleArithmetic(table: String, shape: Shape) throws {
    for type in types {
      let problem = Problem(type: type, shape: shape, seed: UInt64(shape.count * 1000 + shape.columns))
      let result = try problem.run(table)
      for column in 0..<shape.columns { problem.check(result, column: column, "\(table) type \(type) \(shape)") }
    }
  }

  /// Every block, tile and pair of keys ends somewhere.
  @Test(arguments: usableISAs) func everyCountNearAnEdge(table: String) throws {
    let counts = Array(1...20) + [31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128, 129, 191, 192, 193, 255, 256, 257]
    for type in types {
      for count in counts + [383, 384, 385, 511, 512, 513, 575, 577, 1023, 1024, 1025, 1100] {
        let shape = Shape(columns: 3, keyDim: 5, valueDim: 6, count: count, scale: 0.5)
        let problem = Problem(type: type, shape: shape, seed: UInt64(count))
        let result = try problem.run(table)
        for column in 0..<3 { problem.check(result, column: column, "\(table) type \(type) count \(count)") }
      }
    }
  }

  @Test(arguments: usableISAs) func bitsDoNotDependOnNeighbours(table: String) throws {
    for type in types {
      let shape = Shape(columns: 139, keyDim: 135, valueDim: 67, count: 270, scale: 0.1)
      let problem = Problem(type: type, shape: shape, seed: 5)
      let whole = try problem.run(table)
      for part in [0..<1, 15..<17, 20..<23, 24..<28, 60..<76, 64..<128, 128..<139] + (4...10).map({ 100 - $0..<100 }) {
        let alone = try problem.run(table, columns: part)
        let range = part.lowerBound * shape.valueDim..<part.upperBound * shape.valueDim
        #expect(alone.out.map(\.bitPattern) == whole.out[range].map(\.bitPattern), "\(table) type \(type) \(part)")
        #expect(alone.max.map(\.bitPattern) == whole.max[part].map(\.bitPattern))
        #expect(alone.sum.map(\.bitPattern) == whole.sum[part].map(\.bitPattern))
      }
    }
  }

  /// A row listed twice is two keys, and where it lies does not matter.
  @Test(arguments: usableISAs) func repeatedRows(table: String) throws {
    for type in types {
      let shape = Shape(columns: 5, keyDim: 20, valueDim: 33, count: 40, scale: 0.3)
      var problem = Problem(type: type, shape: shape, seed: 6)
      let picks = (0..<70).map { $0 * 7 % 20 }
      let repeated = try problem.run(table, picks: picks)
      for column in 0..<5 { problem.check(repeated, column: column, picks: picks, "\(table) repeated") }
      for i in 20..<40 {
        problem.keys[i] = problem.keys[i - 20]
        problem.values[i] = problem.values[i - 20]
      }
      let copies = try problem.run(table, picks: picks.enumerated().map { $0 % 3 == 0 ? $1 + 20 : $1 })
      #expect(copies.out.map(\.bitPattern) == repeated.out.map(\.bitPattern))
      #expect(copies.sum == repeated.sum)
      // One row again and again: every p is 1, so the mean is the row itself, up to the float sum.
      let same = try problem.run(table, picks: Array(repeating: 11, count: 64))
      #expect(same.sum == Array(repeating: 64, count: 5))
      for (i, x) in same.out.enumerated() {
        let exact = 64 * problem.values[11][i % 33]
        #expect(abs(Double(x) - exact) <= abs(exact) * 64 * 0x1p-24)
      }
    }
  }

  @Test(arguments: usableISAs) func zeroScaleIsTheMean(table: String) throws {
    for type in types {
      let shape = Shape(columns: 3, keyDim: 8, valueDim: 21, count: 100, scale: 0)
      let problem = Problem(type: type, shape: shape, seed: 7)
      let result = try problem.run(table)
      #expect(result.max == [0, 0, 0] && result.sum == [100, 100, 100])
      for column in 0..<3 { problem.check(result, column: column, "\(table) scale 0") }
    }
  }

  /// Scores of a million: all weight on the largest, nothing overflows.
  @Test(arguments: usableISAs) func hugeScores(table: String) throws {
    for type in types {
      let shape = Shape(columns: 2, keyDim: 4, valueDim: 9, count: 300, scale: 1)
      var problem = Problem(type: type, shape: shape, seed: 8)
      problem.queries = [[1024, 0, 0, 0], [-1024, 0, 0, 0]]
      for i in 0..<300 { problem.keys[i] = [Double((i * 77) % 300 - 128) * 4, 1, 1, 1].map(problem.rounded) }
      problem.keys[200][0] = 4096
      problem.keys[10][0] = -8192
      let result = try problem.run(table)
      #expect(result.sum == [1, 1])
      #expect(result.max == [1024 * 4096, 1024 * 8192])
      #expect(result.out.map(Double.init) == problem.values[200] + problem.values[10])
    }
  }

  @Test(arguments: usableISAs) func minusInfinityIsNoWeight(table: String) throws {
    for type in types {
      let shape = Shape(columns: 2, keyDim: 6, valueDim: 20, count: 280, scale: 0.5)
      var problem = Problem(type: type, shape: shape, seed: 9)
      problem.queries = [[1, 0.5, 1, 1, 0.25, 1], [1, 2, 0.5, 1, 1, 1]]
      // The whole first block of any table is out of sight, and a few keys later.
      let hidden = Set(0..<257).union([260, 270, 279])
      for i in hidden { problem.keys[i][3] = -.infinity }
      let result = try problem.run(table)
      let seen = (0..<280).filter { !hidden.contains($0) }
      for column in 0..<2 { problem.check(result, column: column, picks: seen, "\(table) -infinity") }
      // Nothing to see at all: absent.
      let none = try problem.run(table, picks: Array(0..<100))
      #expect(none.sum == [0, 0] && none.max == [-.infinity, -.infinity] && none.out.allSatisfy { $0 == 0 })
    }
  }

  @Test(arguments: usableISAs) func nanStaysInItsColumn(table: String) throws {
    for type in types {
      let shape = Shape(columns: 20, keyDim: 10, valueDim: 40, count: 50, scale: 0.5)
      var problem = Problem(type: type, shape: shape, seed: 10)
      let clean = try problem.run(table)
      problem.queries[4][9] = .nan
      problem.queries[17][0] = .infinity
      let result = try problem.run(table)
      for column in 0..<20 {
        let row = result.out[column * 40..<column * 40 + 40]
        if column == 4 || column == 17 {
          #expect(result.sum[column].isNaN && row.allSatisfy(\.isNaN), "\(table) type \(type) column \(column)")
        } else {
          #expect(row.map(\.bitPattern) == clean.out[column * 40..<column * 40 + 40].map(\.bitPattern))
        }
      }
      // A NaN key is seen by every column.
      problem.queries = clean.sum.indices.map { _ in (0..<10).map { _ in 1 } }
      problem.keys[30][2] = .nan
      let all = try problem.run(table)
      #expect(all.sum.allSatisfy(\.isNaN) && all.out.allSatisfy(\.isNaN))
    }
  }

  /// A row in blocks, some keys hidden, against its softmax at once; what is hidden may hold anything, a block's bits
  /// do not depend on where it is cut, and nothing is written beyond it.
  @Test(arguments: usableISAs) func aRowComesInBlocks(table: String) throws {
    let kernels = try #require(tk_choose(table)).pointee
    var random = SplitMix64(seed: 21)
    let scale = 0.6
    for type in types {
      for (blocks, hides) in [([1], false), ([200], false), ([64, 64, 37], true), ([15, 300, 1, 33], true)] {
        var state: (max: Float, sum: Float) = (-.infinity, 0)
        var (weights, exact, hidden): ([Double], [Double], [Bool]) = ([], [], [])
        for count in blocks {
          let scores = (0..<count).map { _ in Float(5 * random.normal()) }
          let sees = (0..<count).map { _ in !hides || random.uniform() < 0.4 }
          var bits = [UInt64](repeating: hides ? .max : 0, count: (count + 63) / 64)
          for i in 0..<count where !sees[i] { bits[i / 64] &= ~(1 << UInt64(i % 64)) }
          let given = zip(scores, sees).map { $1 ? $0 : .nan }
          let bytes = count * (type == Int32(TK_F32) ? 4 : 2)
          let (p, padded) = (try GuardedMemory(bytes: bytes, alignment: 2), try GuardedMemory(bytes: bytes + 64))
          var longer = state
          let factor = kernels.attend_row(
            type, given, hides ? bits : nil, Int32(count), Float(scale), &state.max, &state.sum, p.base)
          // The same row with keys behind it that it does not see.
          let more = given + [Float](repeating: 1e9, count: 5)
          var fewer = bits + [0]
          if !hides { for i in 0..<count { fewer[i / 64] |= 1 << UInt64(i % 64) } }
          for i in count..<count + 5 { fewer[i / 64] &= ~(1 << UInt64(i % 64)) }
          let same = kernels.attend_row(
            type, more, fewer, Int32(count + 5), Float(scale), &longer.max, &longer.sum, padded.base)
          #expect(same == factor && longer == state && memcmp(p.base, padded.base, bytes) == 0, "\(table) \(blocks)")
          weights = weights.map { $0 * Double(factor) }
          for i in 0..<count {
            weights.append(
              type == Int32(TK_F32)
                ? Double(p.base.load(fromByteOffset: 4 * i, as: Float.self))
                : decodeBF16(p.base.load(fromByteOffset: 2 * i, as: UInt16.self)))
          }
          exact += scores.map { Double($0) * scale }
          hidden += sees.map { !$0 }
        }
        let top = zip(exact, hidden).filter { !$1 }.map(\.0).max() ?? -.infinity
        let expected = zip(exact, hidden).map { $1 ? 0 : exp($0 - top) }
        #expect(abs(Double(state.max) - top) <= 1e-6 * max(1, abs(top)))
        #expect(abs(Double(state.sum) - weights.reduce(0, +)) <= 1e-5 * max(1, weights.reduce(0, +)))
        let bound = type == Int32(TK_F32) ? 4e-6 : 1.0 / 256
        for (w, e) in zip(weights, expected) { #expect(abs(w - e) <= bound * e + 1e-30, "\(table) \(type) \(blocks)") }
      }
    }
  }

  /// Blocks of which a row sees nothing change nothing, before or after others; NaN makes a row NaN.
  @Test(arguments: usableISAs) func aRowThatSeesNothing(table: String) throws {
    let kernels = try #require(tk_choose(table)).pointee
    for type in types {
      var (top, sum): (Float, Float) = (-.infinity, 0)
      let scores = [Float](repeating: 3, count: 40)
      var p = [Float](repeating: 7, count: 41)
      _ = kernels.attend_row(type, scores, [0], 40, 1, &top, &sum, &p)
      #expect(top == -.infinity && sum == 0 && p[0] == 0 && p[40] == 7)
      _ = kernels.attend_row(type, scores, nil, 40, 1, &top, &sum, &p)
      #expect(top == 3 && sum == 40)
      #expect(kernels.attend_row(type, scores, [0], 40, 1, &top, &sum, &p) == 1 && top == 3 && sum == 40)
      _ = kernels.attend_row(type, scores[..<39] + [.nan], nil, 40, 1, &top, &sum, &p)
      #expect(sum.isNaN)
    }
  }

  @Test(arguments: usableISAs) func joinedPartsAreTheWhole(table: String) throws {
    let kernels = try #require(tk_choose(table)).pointee
    for type in types {
      let shape = Shape(columns: 6, keyDim: 12, valueDim: 37, count: 90, scale: 0.6)
      let problem = Problem(type: type, shape: shape, seed: 11)
      for split in [1, 45, 89] {
        var a = try problem.run(table, picks: Array(0..<split))
        let b = try problem.run(table, picks: Array(split..<90))
        kernels.attend_join(&a.out, &a.max, &a.sum, b.out, b.max, b.sum, 6, 37)
        for column in 0..<6 { problem.check(a, column: column, "\(table) joined at \(split)") }
      }
    }
  }

  /// The out of an absent side may hold anything; two absent sides stay absent; NaN wins.
  @Test(arguments: usableISAs) func joinWithAbsentSides(table: String) throws {
    let join = try #require(tk_choose(table)).pointee.attend_join
    let absent = Result(
      out: Array(repeating: .nan, count: 19), max: [-.infinity], sum: [0])
    let present = Result(out: (0..<19).map { Float($0) - 7.25 }, max: [-3], sum: [1.5])
    var left = absent
    join(&left.out, &left.max, &left.sum, present.out, present.max, present.sum, 1, 19)
    #expect(left.out == present.out && left.max == present.max && left.sum == present.sum)
    var right = present
    join(&right.out, &right.max, &right.sum, absent.out, absent.max, absent.sum, 1, 19)
    #expect(right.out == present.out && right.max == present.max && right.sum == present.sum)
    var none = absent
    join(&none.out, &none.max, &none.sum, absent.out, absent.max, absent.sum, 1, 19)
    #expect(none.max == [-.infinity] && none.sum == [0])
    var broken = Result(out: Array(repeating: .nan, count: 19), max: [-.infinity], sum: [.nan])
    join(&broken.out, &broken.max, &broken.sum, present.out, present.max, present.sum, 1, 19)
    #expect(broken.sum[0].isNaN && broken.out.allSatisfy(\.isNaN))
    // Far below the other side: not a bit of it is left.
    var far = present
    far.max = [-1e30]
    join(&far.out, &far.max, &far.sum, present.out, present.max, present.sum, 1, 19)
    #expect(far.out == present.out && far.max == [-3] && far.sum == [1.5])
  }
}
