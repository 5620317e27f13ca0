// Selection, in every table this machine can run: the threshold filter, the copy of everything, and the exact k best
// of a candidate list, against sorting. Data that break sampled or bitwise selection on purpose: plateaus, zeros of
// both signs, infinities, sorted and bimodal scores, sizes around the vector widths.

import TamisKernels
import TamisReference
import Testing

private typealias Table = UnsafePointer<tk_table>

private func usableTables() -> [Table] {
  var tables: [Table] = []
  while let name = tk_usable(Int32(tables.count)), let table = tk_choose(name) { tables.append(table) }
  return tables
}

private enum Scores: CaseIterable {
  case normal, rectified, equal, coarse, rising, falling, wide, halfMissing, zeros, anyBits, outliers, infinite

  func make(_ count: Int, _ random: inout SplitMix64) -> [Float] {
    (0..<count).map { i in
      let normal = Float(random.normal())
      switch self {
      case .normal: return normal
      case .rectified: return normal > 0 ? normal : random.integer(below: 2) == 0 ? 0 : -0.0
      case .equal: return 1.5
      case .coarse: return (normal * 2).rounded() / 2
      case .rising: return Float(i)
      case .falling: return Float(-i)
      case .wide: return normal * Float(sign: .plus, exponent: random.integer(below: 200) - 100, significand: 1)
      case .halfMissing: return random.integer(below: 2) == 0 ? -.infinity : normal
      case .zeros: return random.integer(below: 2) == 0 ? 0 : -0.0
      case .anyBits:
        let value = Float(bitPattern: UInt32(truncatingIfNeeded: random.next()))
        return value.isNaN ? 1 : value
      case .outliers: return i % 513 == 0 ? 100 + normal : normal * 0.01
      case .infinite: return .infinity
      }
    }
  }
}

/// All positions, best first: score descending, then lower index.
private func ranking(_ scores: [Float]) -> [Int] {
  scores.indices.sorted { scores[$0] != scores[$1] ? scores[$0] > scores[$1] : $0 < $1 }
}

private let guardScore: Float = 12345
private let guardIndex: Int32 = -12345

@Suite struct SelectKernelTests {
  /// Runs select_shrink on candidates whose indices are 3 i + 7, with guards behind the arrays and the scratch.
  private func shrink(_ table: Table, _ scores: [Float], k: Int) -> (positions: [Int], scores: [Float], least: Float) {
    var candidates = scores + Array(repeating: guardScore, count: 16)
    var indices = scores.indices.map { Int32(3 * $0 + 7) } + Array(repeating: guardIndex, count: 16)
    let scratchBytes = Int(TK_SHRINK_SCRATCH)
    let scratch = UnsafeMutableRawPointer.allocate(byteCount: scratchBytes + 64, alignment: 64)
    defer { scratch.deallocate() }
    scratch.initializeMemory(as: UInt8.self, repeating: 0xa5, count: scratchBytes + 64)
    let least = table.pointee.select_shrink(&candidates, &indices, Int32(scores.count), Int32(k), scratch)
    #expect(candidates[scores.count...].allSatisfy { $0 == guardScore })
    #expect(indices[scores.count...].allSatisfy { $0 == guardIndex })
    #expect((scratchBytes..<scratchBytes + 64).allSatisfy { scratch.load(fromByteOffset: $0, as: UInt8.self) == 0xa5 })
    return (indices[..<k].map { (Int($0) - 7) / 3 }, Array(candidates[..<k]), least)
  }

  private func checkShrink(_ scores: [Float], _ ranking: [Int], k: Int, _ what: String) {
    let positions = ranking.prefix(k).sorted()
    let bits = positions.map { scores[$0].bitPattern }
    for table in usableTables() {
      let got = shrink(table, scores, k: k)
      let name = String(cString: table.pointee.name)
      #expect(got.positions == positions, "\(name) \(what), \(k) of \(scores.count)")
      #expect(got.scores.map(\.bitPattern) == bits)
      #expect(got.least == scores[ranking[k - 1]] && !(got.least == 0 && got.least.sign == .minus))
    }
  }

  @Test(arguments: Scores.allCases) private func shrinkKeepsTheBest(_ kind: Scores) {
    var random = SplitMix64(seed: 1)
    for count in [1, 2, 7, 15, 16, 17, 33, 255, 511, 513, 1000, 5003] {
      let scores = kind.make(count, &random)
      let ranking = ranking(scores)
      let some = 1 + random.integer(below: count)
      for k in Set([1, count, max(1, count / 2), max(1, count - 1), min(count, 2048), some]) {
        checkShrink(scores, ranking, k: k, "\(kind)")
      }
    }
  }

  @Test(arguments: [Scores.normal, .rectified, .coarse, .equal, .rising]) private func shrinkOfLongLists(_ kind: Scores) {
    var random = SplitMix64(seed: 2)
    let scores = kind.make(100_000, &random)
    let ranking = ranking(scores)
    for k in [65_536, 2048] { checkShrink(scores, ranking, k: k, "\(kind)") }
  }

  @Test(arguments: Scores.allCases) private func aboveKeepsOrderAndBounds(_ kind: Scores) {
    var random = SplitMix64(seed: 3)
    for count in [0, 1, 7, 8, 15, 16, 17, 31, 64, 1000, 1024] {
      var scores = kind.make(count, &random)
      if count > 4 { scores[count / 2] = .nan }
      let thresholds: [Float] = [-.infinity, -0.0, 0, 0.5, 1.5, .infinity, scores.first ?? 0]
      for threshold in thresholds { for table in usableTables() { checkAbove(table, scores, threshold, "\(kind)") } }
    }
  }

  private func checkAbove(_ table: Table, _ scores: [Float], _ threshold: Float, _ what: String) {
    let wanted = scores.indices.filter { scores[$0] > threshold }
    let base = 1_000_000
    var kept = Array(repeating: guardScore, count: scores.count + 32)
    var indices = Array(repeating: guardIndex, count: scores.count + 32)
    let count = Int(
      table.pointee.select_above(scores, Int32(scores.count), Int32(base), threshold, &kept, &indices))
    let name = String(cString: table.pointee.name)
    #expect(count == wanted.count, "\(name) \(what) above \(threshold)")
    guard count == wanted.count else { return }
    #expect(indices[..<count].map { Int($0) - base } == wanted)
    #expect(kept[..<count].map(\.bitPattern) == wanted.map { scores[$0].bitPattern })
    // Nothing beyond `count` entries in all, nor sixteen behind the last survivor.
    for i in min(count + 16, scores.count)..<kept.count {
      #expect(kept[i] == guardScore && indices[i] == guardIndex, "\(name) wrote entry \(i) of \(count)")
    }
  }

  @Test func allCopiesAndReplacesNaN() {
    var random = SplitMix64(seed: 4)
    for count in [0, 1, 7, 8, 9, 15, 16, 17, 1000] {
      var scores = Scores.normal.make(count, &random)
      for i in stride(from: 0, to: count, by: 3) { scores[i] = i % 2 == 0 ? .nan : -.nan }
      for table in usableTables() {
        var kept = Array(repeating: guardScore, count: count + 16)
        var indices = Array(repeating: guardIndex, count: count + 16)
        table.pointee.select_all(scores, Int32(count), 50, &kept, &indices)
        #expect(kept[..<count].elementsEqual(scores.map { $0.isNaN ? -.infinity : $0 }))
        #expect(indices[..<count].elementsEqual(scores.indices.map { Int32($0 + 50) }))
        #expect(kept[count...].allSatisfy { $0 == guardScore } && indices[count...].allSatisfy { $0 == guardIndex })
      }
    }
  }

  /// Every table gives what the portable one gives, bit for bit, on sizes, counts and data drawn at random.
  @Test func tablesAgreeOnRandomData() throws {
    let tables = usableTables()
    let first = try #require(tables.first)
    var random = SplitMix64(seed: 5)
    for _ in 0..<300 {
      let count = 1 + random.integer(below: random.integer(below: 4) == 0 ? 9000 : 700)
      let k = 1 + random.integer(below: count)
      let kind = Scores.allCases[random.integer(below: Scores.allCases.count)]
      let scores = kind.make(count, &random)
      let wanted = shrink(first, scores, k: k)
      for table in tables.dropFirst() {
        let got = shrink(table, scores, k: k)
        #expect(got.positions == wanted.positions, "\(String(cString: table.pointee.name)) \(kind), \(k) of \(count)")
        #expect(got.scores.map(\.bitPattern) == wanted.scores.map(\.bitPattern))
        #expect(got.least.bitPattern == wanted.least.bitPattern)
      }
    }
  }
}
