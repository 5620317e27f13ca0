// Re-positioned rows against rows that were computed at the new position in Double: every dtype, both ways to pair, with
// and without the Hadamard rotation. The wrong way must be seen.

import Glibc
import TamisCache
import TamisOperators
import TamisReference
import TamisRuntime
import TamisTestSupport
import Testing

@Suite struct SpliceTests {
  private struct Way {
    var keyInterleaved = true
    var indexInterleaved = false
    var hadamard = false
  }

  private func frequencies(_ dims: Int) -> [Float] { (0..<dims / 2).map { Float(pow(10000, -Double(2 * $0) / Double(dims))) } }

  /// x with the dims from `first` on turned to a position.
  private func turned(_ x: [Double], first: Int, dims: Int, interleaved: Bool, position: Int) -> [Double] {
    var x = x
    for (i, frequency) in frequencies(dims).enumerated() {
      let angle = Double(position) * Double(frequency)
      let (p, q) = interleaved ? (first + 2 * i, first + 2 * i + 1) : (first + i, first + i + dims / 2)
      (x[p], x[q]) = (x[p] * cos(angle) - x[q] * sin(angle), x[q] * cos(angle) + x[p] * sin(angle))
    }
    return x
  }

  /// Root mean square of the difference, relative to that of the expected numbers.
  private func error(_ got: [Float], _ expected: [Double]) -> Double {
    let sums = zip(got, expected).reduce(into: (0.0, 0.0)) { sums, pair in
      let difference = Double(pair.0) - pair.1
      sums = (sums.0 + difference * difference, sums.1 + pair.1 * pair.1)
    }
    return (sums.0 / sums.1).squareRoot()
  }

  private func bound(_ dtype: DType) -> Double {
    switch dtype {
    case .f32: 1e-5
    case .f16: 1e-3
    case .bf16, .mla656: 6e-3
    case .i8: 0.02
    default: 0.06
    }
  }

  private struct Errors {
    var key = 0.0
    var index = 0.0
  }

  /// A document of 60 rows; 50 of them, from row 5 on, behind 37 others. `how` makes the rows, `said` is what splice is told.
  private func spliced(_ options: CacheOptions, _ how: Way, said: Way) throws -> Errors {
    let dims = options.kvDType == .mla656 ? 64 : 8
    let indexDims = options.indexDim >= dims ? dims : options.indexDim
    let keyFirst = options.keyDim - dims
    let (m, start, first, count) = (60, 37, 5, 50)
    var numbers = SplitMix64(seed: 71)
    let plain = try Rows32(m, options, &numbers)
    func row(_ held: Held, _ i: Int) -> [Double] {
      let width = held.tensor.count / m
      return (0..<width).map { Double(held.floats[i * width + $0]) }
    }
    func key(_ i: Int, at position: Int) -> [Double] {
      let all = row(plain.key, i)
      return stride(from: 0, to: all.count, by: options.keyDim).flatMap { head in
        turned(
          Array(all[head..<head + options.keyDim]), first: keyFirst, dims: dims, interleaved: how.keyInterleaved,
          position: position)
      }
    }
    func index(_ i: Int, at position: Int) -> [Double] {
      let x = turned(
        row(plain.indexKey, i), first: 0, dims: indexDims, interleaved: how.indexInterleaved, position: position)
      return how.hadamard ? rotateHadamard(x) : x
    }
    let rows = try Rows32(m, options, &numbers)
    for i in 0..<m {
      for (j, x) in key(i, at: i).enumerated() { rows.key.floats[i * key(i, at: i).count + j] = Float(x) }
      for (j, x) in index(i, at: i).enumerated() { rows.indexKey.floats[i * options.indexDim + j] = Float(x) }
    }
    let cache = try Cache(makeContext(), options)
    let document = try TokenSequence.create(cache)
    let ids = (0..<m).map { Int32($0) }
    try document.extend(ids, m)
    for layer in 0..<options.layers { try document.write(rows, 0..<m, layer: layer) }
    let sequence = try TokenSequence.create(cache)
    try sequence.extend(ids.map { $0 + 500 }, start)
    try frequencies(dims).withUnsafeBufferPointer {
      try sequence.splice(
        document, first: Int64(first), count: Int64(count),
        Rotary(
          frequencies: $0, key: RotaryDims(first: keyFirst, interleaved: said.keyInterleaved),
          indexKey: RotaryDims(first: 0, interleaved: said.indexInterleaved), hadamard: said.hadamard))
    }
    #expect(try sequence.length() == start + count)
    let both = (0..<start).map { Int32($0 + 500) } + ids[first..<first + count]
    #expect(try TokenSequence.match(cache, tokens: both, count: both.count).matched == start + count)
    var worst = Errors()
    let (width, d) = (options.kvHeads * options.keyDim, options.indexDim)
    let (gotKey, source) = try (Held(.f32, [m, options.kvHeads, options.keyDim]), Held(.f32, [m, options.kvHeads, options.keyDim]))
    let gotIndex = try Held(.f32, [m, d])
    for layer in 0..<options.layers {
      try sequence.read(
        layer: layer, first: Int64(start), key: gotKey.rows(0..<count), value: nil,
        indexKey: options.indexDType == nil ? nil : gotIndex.rows(0..<count))
      try document.read(layer: layer, first: Int64(first), key: source.rows(0..<count), value: nil, indexKey: nil)
      for i in 0..<count {
        let expected = key(first + i, at: start + i)
        for head in stride(from: 0, to: width, by: options.keyDim) {
          // The latent is the same bits.
          for j in head..<head + keyFirst { #expect(gotKey.floats[i * width + j] == source.floats[i * width + j]) }
          let range = head + keyFirst..<head + options.keyDim
          worst.key = max(worst.key, error(range.map { gotKey.floats[i * width + $0] }, Array(expected[range])))
        }
        guard options.indexDType != nil else { continue }
        worst.index = max(
          worst.index, error((0..<d).map { gotIndex.floats[i * d + $0] }, index(first + i, at: start + i)))
      }
    }
    return worst
  }

  @Test(arguments: Combination.all.enumerated().filter { $0.offset % 3 == 1 }.map(\.element))
  func rowsAreThoseOfTheNewPosition(_ combination: Combination) throws {
    var options = combination.options
    if options.kvDType == .mla656, options.indexDim < 64 { options.indexDim = 64 }
    for how in [Way(), Way(hadamard: true), Way(keyInterleaved: false, indexInterleaved: true)] {
      let errors = try spliced(options, how, said: how)
      #expect(errors.key <= bound(options.kvDType), "\(errors)")
      if let dtype = options.indexDType { #expect(errors.index <= bound(dtype), "\(errors)") }
    }
  }

  @Test func theWrongWayIsSeen() throws {
    let options = Combination.small
    #expect(try spliced(options, Way(), said: Way(keyInterleaved: false)).key > 0.2)
    #expect(try spliced(options, Way(), said: Way(indexInterleaved: true)).index > 0.2)
    #expect(try spliced(options, Way(), said: Way(hadamard: true)).index > 0.2)
    #expect(try spliced(options, Way(hadamard: true), said: Way()).index > 0.2)
  }

  @Test func wrongSplicesAreRefused() throws {
    var options = Combination.small
    options.maxTokens = 64
    let cache = try Cache(makeContext(), options)
    let (sequence, document) = try (TokenSequence.create(cache), TokenSequence.create(cache))
    try document.extend(nil, 40)
    let stranger = try TokenSequence.create(Cache(makeContext(), options))
    func splice(
      _ document: TokenSequence, _ first: Int64, _ count: Int64, _ frequencies: [Float] = [1, 0.5], key: Int = 0,
      index: Int = 0
    ) -> Status {
      status {
        try frequencies.withUnsafeBufferPointer {
          try sequence.splice(
            document, first: first, count: count,
            Rotary(
              frequencies: $0, key: RotaryDims(first: key, interleaved: true),
              indexKey: RotaryDims(first: index, interleaved: true), hadamard: false))
        }
      }
    }
    #expect(splice(stranger, 0, -1) == .argument)
    #expect(splice(sequence, 0, -1) == .argument)
    #expect(splice(document, 41, -1) == .argument)
    #expect(splice(document, -1, 1) == .argument)
    #expect(splice(document, 1, 40) == .argument)
    #expect(splice(document, 1, -2) == .argument)
    #expect(splice(document, 0, 1, []) == .argument)
    #expect(splice(document, 0, 1, [.nan]) == .argument)
    #expect(splice(document, 0, 1, key: 29) == .argument)
    #expect(splice(document, 0, 1, index: 29) == .argument)
    #expect(splice(document, 0, 1, key: .max) == .argument)
    #expect(splice(document, 0, -1) == .full)
    #expect(try sequence.length() == 0)
    #expect(splice(document, 40, -1) == .ok && splice(document, 30, 10, key: 28, index: 28) == .ok)
    #expect(try sequence.length() == 10)
  }
}
