// Rows as they are written and read back: against independent arithmetic, bit for bit in the cache's own dtype, zeros
// before the first write, and nothing at all after a refused one.

import Glibc
import TamisCache
import TamisOperators
import TamisReference
import TamisRuntime
import TamisTestSupport
import Testing

/// Memory that is only there where it is touched.
func sparseMemory(_ bytes: Int) -> UnsafeMutableRawPointer? {
  let memory = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
  return memory == MAP_FAILED ? nil : memory
}

func freeSparseMemory(_ memory: UnsafeMutableRawPointer?, _ bytes: Int) { munmap(memory, bytes) }

@Suite struct RowTests {
  /// Key, value and index key of rows 0 ..< m as floats.
  private func readBack(_ sequence: TokenSequence, _ m: Int, layer: Int = 0) throws -> [[Float]] {
    let options = sequence.cache.options
    let key = try Held(.f32, [m, options.kvHeads, options.keyDim])
    let value = try Held(.f32, [m, options.kvHeads, options.valueDim])
    let indexKey = try Held(.f32, [m, options.indexDim])
    try sequence.read(
      layer: layer, first: 0, key: key.tensor, value: value.tensor,
      indexKey: options.indexDType == nil ? nil : indexKey.tensor)
    return [key.values, value.values, options.indexDType == nil ? [] : indexKey.values]
  }

  private func doubles(_ held: Held, row: Int, count: Int) -> [Double] {
    (0..<count).map { Double(held.floats[row * count + $0]) }
  }

  @Test(arguments: Combination.all)
  func readsWhatTheReferenceQuantises(_ combination: Combination) throws {
    let options = combination.options
    let sequence = try TokenSequence.create(Cache(makeContext(), options))
    var numbers = SplitMix64(seed: 3)
    let m = 70
    let rows = try Rows32(m, options, &numbers)
    try sequence.append(rows, 0..<m)
    let read = try readBack(sequence, m)
    let (keyCount, valueCount) = (options.kvHeads * options.keyDim, options.kvHeads * options.valueDim)
    for row in 0..<m {
      let key = doubles(rows.key, row: row, count: keyCount)
      let stored: [Double]
      switch options.kvDType {
      case .bf16: stored = key.map { roundedToBF16($0) }
      case .f16: stored = key.map { roundedToF16($0) }
      case .mla656: stored = decodeFlashMLAToken(encodeFlashMLAToken(key, powerOfTwo: true))
      default: stored = key
      }
      #expect(read[0][row * keyCount..<(row + 1) * keyCount].map { Double($0) } == stored)
      let value = read[1][row * valueCount..<(row + 1) * valueCount].map { Double($0) }
      if options.ownValues {
        let own = doubles(rows.value, row: row, count: valueCount)
        let rounded = own.map { options.kvDType == .bf16 ? roundedToBF16($0) : options.kvDType == .f16 ? roundedToF16($0) : $0 }
        #expect(value == rounded)
      } else {
        let views = (0..<options.kvHeads).flatMap { head in
          stored[head * options.keyDim..<head * options.keyDim + options.valueDim]
        }
        #expect(value == views)
      }
      guard let dtype = options.indexDType else { continue }
      let d = options.indexDim
      let index = doubles(rows.indexKey, row: row, count: d)
      let got = read[2][row * d..<(row + 1) * d].map { Double($0) }
      switch dtype {
      case .bf16: #expect(got == index.map { roundedToBF16($0) })
      case .f16: #expect(got == index.map { roundedToF16($0) })
      case .i8:
        let q = quantizeINT8(index, block: d)
        let expected = dequantizeINT8(q.codes, scales: q.scales, block: d)
        #expect(zip(got, expected).allSatisfy { abs($0 - $1) <= 1e-6 * max(1, abs($1)) })
      case .index132:
        let q = quantizeE4M3(index, block: d, powerOfTwo: true)
        #expect(got == dequantizeE4M3(q.codes, scales: q.scales, block: d))
      default: #expect(got == index)
      }
    }
  }

  /// The cache's own dtype goes in bit for bit, scales included.
  @Test(arguments: Combination.all)
  func ownDTypeIsCopiedBitForBit(_ combination: Combination) throws {
    let options = combination.options
    let context = try makeContext()
    let cache = try Cache(context, options)
    var numbers = SplitMix64(seed: 7)
    let m = 130
    let rows = try Rows32(m, options, &numbers)
    let flat = try Flat(rows, m, options, context)
    if let scale = flat.indexKey?.tensor.scale {
      for row in 0..<m { scale[row] *= 1.37 }  // no scale that the cache would have found itself
    }
    let sequence = try TokenSequence.create(cache)
    try sequence.extend(nil, m)
    try sequence.write(
      layer: 1, first: 0, key: flat.key.tensor, value: flat.value?.tensor, indexKey: flat.indexKey?.tensor)
    let queries = try Queries(4, options, indexHeads: 3, heads: 4, &numbers)
    #expect(
      try run([sequence], rows: [4], queries, 0..<4, k: 9, layer: 1)
        == flat.run(context, options, queries, 0..<4, k: 9))
    // Other formats on the way: BF16 rows into every cache are what their floats are.
    let halves = try (rows.key.converted(.bf16, context), rows.value.converted(.bf16, context))
    let index = try rows.indexKey.converted(.bf16, context)
    let widened = try (Held(.f32, shape(halves.0)), Held(.f32, shape(halves.1)), Held(.f32, shape(index)))
    try Quantize.back(context, x: halves.0.tensor, out: widened.0.tensor)
    try Quantize.back(context, x: halves.1.tensor, out: widened.1.tensor)
    try Quantize.back(context, x: index.tensor, out: widened.2.tensor)
    let hasIndex = options.indexDType != nil
    try sequence.write(
      layer: 0, first: 0, key: halves.0.tensor, value: options.ownValues ? halves.1.tensor : nil,
      indexKey: hasIndex ? index.tensor : nil)
    try sequence.write(
      layer: 1, first: 0, key: widened.0.tensor, value: options.ownValues ? widened.1.tensor : nil,
      indexKey: hasIndex ? widened.2.tensor : nil)
    #expect(try readBack(sequence, m, layer: 0) == readBack(sequence, m, layer: 1))
  }

  private func shape(_ held: Held) -> [Int] { (0..<held.tensor.rank).map { held.tensor.shape[$0] } }

  /// Whatever was in the memory before: another sequence's rows, or this one's before a truncate.
  @Test(arguments: [0, 5, 16, 23])
  func newRowsAreZeros(_ kept: Int) throws {
    let allocator = Allocator()
    let context = try Context.create(allocator.options)
    let options = Combination.small
    let cache = try Cache(context, options)
    var numbers = SplitMix64(seed: 13)
    let rows = try Rows32(60, options, &numbers)
    let sequence = try TokenSequence.create(cache)
    try sequence.append(rows, 0..<60)
    let before = try readBack(sequence, 60)
    let shared = try sequence.fork(Int64(kept))
    for each in [shared, sequence] {
      try each.truncate(Int64(kept))
      try each.extend(nil, 40)
      let read = try readBack(each, kept + 40)
      for (part, count) in [options.keyDim, options.valueDim, options.indexDim].enumerated() {
        #expect(read[part][(kept * count)...].allSatisfy { $0 == 0 })
        #expect(read[part].prefix(kept * count) == before[part].prefix(kept * count))
      }
    }
  }

  @Test(arguments: [Float.nan, .infinity, -.infinity], [DType.i8, .index132])
  func eightBitRowsRefuseWhatTheyCannotHold(_ bad: Float, _ dtype: DType) throws {
    var options = CacheOptions()
    options.kvDType = .mla656
    options.indexDType = dtype
    let cache = try Cache(makeContext(), options)
    let sequence = try TokenSequence.create(cache)
    var numbers = SplitMix64(seed: 17)
    let (rows, later) = try (Rows32(100, options, &numbers), Rows32(100, options, &numbers))
    try sequence.append(rows, 0..<100)
    let other = try sequence.fork(-1)
    let before = try readBack(sequence, 100)
    // The last one is in the rotary part, which stays BF16 but belongs to a row that is quantised.
    for (held, at) in [(later.indexKey, 99 * 128 + 5), (later.key, 98 * 576 + 511), (later.key, 3), (later.key, 575)] {
      let good = held.floats[at]
      held.floats[at] = bad
      #expect(status { try sequence.write(later, 0..<100) } == .argument)
      held.floats[at] = good
      #expect(try readBack(sequence, 100) == before)
    }
    try sequence.write(later, 0..<100)
    #expect(try readBack(sequence, 100) != before)
    #expect(try readBack(other, 100) == before)
  }

  @Test func wrongWritesAndReadsAreRefused() throws {
    var options = Combination.small
    options.layers = 2
    let cache = try Cache(makeContext(), options)
    let sequence = try TokenSequence.create(cache)
    try sequence.extend(nil, 20)
    var numbers = SplitMix64(seed: 19)
    let rows = try Rows32(20, options, &numbers)
    let (key, index) = (rows.key.tensor, rows.indexKey.tensor)
    let narrow = try Held(.f32, [20, 31])
    let value = rows.value.tensor
    #expect(status { try sequence.write(layer: 2, first: 0, key: key, value: nil, indexKey: nil) } == .argument)
    #expect(status { try sequence.write(layer: -1, first: 0, key: key, value: nil, indexKey: nil) } == .argument)
    #expect(status { try sequence.write(layer: 0, first: 1, key: key, value: nil, indexKey: nil) } == .argument)
    #expect(status { try sequence.write(layer: 0, first: -1, key: key, value: nil, indexKey: nil) } == .argument)
    #expect(status { try sequence.write(layer: 0, first: .max, key: key, value: nil, indexKey: nil) } == .argument)
    #expect(status { try sequence.write(layer: 0, first: 0, key: key, value: value, indexKey: nil) } == .argument)
    #expect(status { try sequence.write(layer: 0, first: 0, key: nil, value: nil, indexKey: nil) } == .argument)
    #expect(
      status { try sequence.write(layer: 0, first: 0, key: narrow.tensor, value: nil, indexKey: nil) } == .argument)
    let fewer = try rows.key.rows(0..<19)
    #expect(status { try sequence.write(layer: 0, first: 0, key: fewer, value: nil, indexKey: index) } == .argument)
    #expect(status { try sequence.read(layer: 0, first: 0, key: key, value: nil, indexKey: key) } == .argument)
    #expect(status { try sequence.read(layer: 0, first: 0, key: nil, value: nil, indexKey: nil) } == .argument)
    try sequence.write(layer: 0, first: 0, key: nil, value: nil, indexKey: index)
    #expect(try readBack(sequence, 20)[0].allSatisfy { $0 == 0 })

    options.indexDType = nil
    let dense = try TokenSequence.create(Cache(makeContext(), options))
    try dense.extend(nil, 20)
    #expect(status { try dense.write(layer: 0, first: 0, key: key, value: nil, indexKey: index) } == .argument)
  }

  /// The counters see rows and bytes.
  @Test func rowsAreCounted() throws {
    let context = try makeContext()
    let options = Combination.small
    let sequence = try TokenSequence.create(Cache(context, options))
    var numbers = SplitMix64(seed: 29)
    try sequence.append(Rows32(50, options, &numbers), 0..<50)
    _ = try readBack(sequence, 50)
    let sample = context.counters.snapshot(.cache)
    let stored = 32 * 2 + 32 + 4
    #expect(sample.calls == 2 && sample.queries == 100)
    #expect(sample.bytes == UInt64(50 * (stored + 32 * 8) + 50 * (stored + 24 * 2 + 32 * 8 + 24 * 4)))
  }
}
