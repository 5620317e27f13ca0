// Sequences against plain arrays: thousands of random operations from a fixed seed, with memory that fails at random,
// a bound on tokens and on bytes; the same script with every single allocation failing once; many threads at once.

import Synchronization
import TamisCache
import TamisOperators
import TamisReference
import TamisRuntime
import TamisTestSupport
import Testing

/// What a sequence should be: for each position its token id and, for each layer, the number its rows are filled with.
private struct Model: Equatable {
  var tokens: [Int32] = []
  var keys: [[Float]]  // [layer][position]
  var indexKeys: [[Float]]

  init(layers: Int) {
    keys = Array(repeating: [], count: layers)
    indexKeys = keys
  }

  mutating func extend(_ ids: [Int32]?, _ count: Int) {
    tokens += ids ?? Array(repeating: -1, count: count)
    for layer in keys.indices {
      keys[layer] += Array(repeating: 0, count: count)
      indexKeys[layer] += Array(repeating: 0, count: count)
    }
  }

  mutating func truncate(_ length: Int) {
    tokens.removeLast(tokens.count - length)
    for layer in keys.indices {
      keys[layer].removeLast(keys[layer].count - length)
      indexKeys[layer].removeLast(indexKeys[layer].count - length)
    }
  }

  func matching(_ ids: [Int32]) -> Int {
    zip(tokens, ids).prefix { $0 == $1 && $0 >= 0 }.count
  }
}

/// Sequences with their models, and a way to fill and read rows whose numbers are all equal.
private final class Pair {
  let sequence: TokenSequence
  var model: Model

  init(_ sequence: TokenSequence, _ model: Model) {
    self.sequence = sequence
    self.model = model
  }

  func write(_ layer: Int, _ range: Range<Int>, key: Float?, indexKey: Float?, _ buffers: Buffers) throws {
    buffers.fill(range.count, key ?? 0, indexKey ?? 0)
    try sequence.write(
      layer: layer, first: Int64(range.lowerBound), key: key == nil ? nil : buffers.key.rows(0..<range.count),
      value: nil, indexKey: indexKey == nil ? nil : buffers.indexKey.rows(0..<range.count))
    for position in range {
      if let key { model.keys[layer][position] = key }
      if let indexKey { model.indexKeys[layer][position] = indexKey }
    }
  }

  /// Is every row what the model says? Failing memory is asked again.
  func agrees(_ buffers: Buffers) throws -> Bool {
    let m = model.tokens.count
    guard try sequence.length() == m else { return false }
    for layer in model.keys.indices {
      guard m > 0 else { continue }
      try sequence.read(
        layer: layer, first: 0, key: buffers.key.rows(0..<m), value: nil, indexKey: buffers.indexKey.rows(0..<m))
      guard buffers.hold(model.keys[layer], model.indexKeys[layer]) else { return false }
    }
    return true
  }
}

private struct Buffers {
  let key: Held
  let indexKey: Held

  init(_ most: Int, _ options: CacheOptions) throws {
    key = try Held(.f32, [most, options.keyDim])
    indexKey = try Held(.f32, [most, options.indexDim])
  }

  func fill(_ rows: Int, _ keyValue: Float, _ indexValue: Float) {
    key.floats.update(repeating: keyValue, count: rows * key.tensor.shape[1])
    indexKey.floats.update(repeating: indexValue, count: rows * indexKey.tensor.shape[1])
  }

  func hold(_ keys: [Float], _ indexKeys: [Float]) -> Bool {
    for (held, expected) in [(key, keys), (indexKey, indexKeys)] {
      let d = held.tensor.shape[1]
      for (position, number) in expected.enumerated() {
        for j in 0..<d where held.floats[position * d + j] != number { return false }
      }
    }
    return true
  }
}

private var tiny: CacheOptions {
  var options = CacheOptions()
  options.layers = 2
  options.kvDType = .f32
  options.indexDType = .f16
  options.keyDim = 8
  options.valueDim = 8
  options.indexDim = 4
  options.pageTokens = 16
  options.maxTokens = 16 * 40
  return options
}

/// A host whose `parallel` runs a probe in the middle of the library's call.
private final class Host {
  var probe: (() -> Void)?

  /// The options hold no reference: keep the host alive beyond the context.
  var options: ContextOptions {
    var options = ContextOptions()
    options.threads = 2
    options.user = Unmanaged.passUnretained(self).toOpaque()
    options.parallel = { user, count, task, argument in
      if let user { Unmanaged<Host>.fromOpaque(user).takeUnretainedValue().probe?() }
      for i in 0..<count { task?(argument, i) }
    }
    return options
  }
}

@Suite struct ModelTests {
  private static let most = 16 * 40

  /// Random operations; whatever fails for want of memory or room leaves everything as it was.
  @Test(arguments: [UInt64(1), 2, 3, 4])
  func randomOperationsAgreeWithArrays(_ seed: UInt64) throws {
    let allocator = Allocator()
    var contextOptions = allocator.options
    contextOptions.maxBytes = 200_000
    var peakHeld = 0
    var refused: [Status: Int] = [:]
    do {
      let context = try Context.create(contextOptions)
      let cache = try Cache(context, tiny)
      let buffers = try Buffers(Self.most, tiny)
      var numbers = SplitMix64(seed: seed)
      var pairs: [Pair] = []
      for step in 1...4000 {
        if numbers.integer(below: 8) == 0 {
          let call = allocator.callCount + 1 + numbers.integer(below: 3)
          allocator.fail(call..<call + 1 + numbers.integer(below: 3))
        }
        let outcome = status { try Self.step(step, cache, &pairs, buffers, &numbers) }
        refused[outcome, default: 0] += 1
        #expect([.ok, .memory, .full, .budget].contains(outcome), "step \(step)")
        allocator.fail(0..<0)
        if let pair = pairs.isEmpty ? nil : pairs[numbers.integer(below: pairs.count)] {
          #expect(try pair.agrees(buffers), "step \(step)")
        }
        if step % 100 == 0 { for pair in pairs { #expect(try pair.agrees(buffers), "step \(step)") } }
        let pages = Int(cache.usage.tokens) / 16
        let needed = pairs.map { ($0.model.tokens.count + 15) / 16 }
        #expect(pages <= needed.reduce(0, +) && pages >= (needed.max() ?? 0) && pages <= 40)
        #expect(cache.sequenceCount == pairs.count)
        peakHeld = max(peakHeld, allocator.bytesHeld)
      }
      pairs.removeAll()
      #expect(cache.usage.bytes == 0)
      context.trim()
      #expect(context.bytesInUse == 0)
    }
    #expect(allocator.bytesHeld == 0)
    #expect(peakHeld <= 200_000)
    #expect((refused[.ok] ?? 0) > 2000 && (refused[.memory] ?? 0) > 20 && (refused[.full] ?? 0) > 20, "\(refused)")
  }

  private static func step(
    _ step: Int, _ cache: Cache, _ pairs: inout [Pair], _ buffers: Buffers, _ numbers: inout SplitMix64
  ) throws {
    let chosen = pairs.isEmpty ? nil : pairs[numbers.integer(below: pairs.count)]
    let kind = numbers.integer(below: 100)
    if kind < 6 || chosen == nil {
      pairs.append(Pair(try TokenSequence.create(cache), Model(layers: 2)))
      return
    }
    guard let pair = chosen else { return }
    let length = pair.model.tokens.count
    switch kind {
    case ..<32:
      let count = numbers.integer(below: numbers.integer(below: 8) == 0 ? 200 : 20)
      let known = numbers.integer(below: 5) > 0
      let ids = known ? (0..<count).map { _ in Int32(numbers.integer(below: 3)) } : nil
      try ids == nil ? pair.sequence.extend(nil, count) : pair.sequence.extend(ids, count)
      pair.model.extend(ids, count)
    case ..<62:
      guard length > 0 else { return }
      let first = numbers.integer(below: length)
      let range = first..<first + 1 + numbers.integer(below: min(40, length - first))
      let what = numbers.integer(below: 3)
      // Small whole numbers are exact in every dtype.
      let value = Float(step % 1000 + 1)
      try pair.write(
        numbers.integer(below: 2), range, key: what == 0 ? nil : value, indexKey: what == 1 ? nil : value + 1, buffers)
    case ..<70:
      let cut = numbers.integer(below: length + 1)
      try pair.sequence.truncate(Int64(cut))
      pair.model.truncate(cut)
    case ..<80:
      let cut = numbers.integer(below: length + 1)
      let fork = try pair.sequence.fork(Int64(cut))
      var model = pair.model
      model.truncate(cut)
      pairs.append(Pair(fork, model))
    case ..<88:
      let count = numbers.integer(below: 40) + 1
      let source = pairs[numbers.integer(below: pairs.count)].model.tokens
      let ids = Array(source.prefix(numbers.integer(below: source.count + 1)))
        + (0..<count).map { _ in Int32(numbers.integer(below: 3)) }
      let (sequence, matched) = try TokenSequence.match(cache, tokens: ids, count: ids.count)
      #expect(matched == pairs.map { $0.model.matching(ids) }.max())
      // The one it was forked from is one of those that match so far: the rows say which.
      let candidates = pairs.filter { $0.model.matching(ids) == matched }.map {
        var model = $0.model
        model.truncate(matched)
        return Pair(sequence, model)
      }
      let same = try candidates.first { try $0.agrees(buffers) }
      pairs.append(same ?? Pair(sequence, Model(layers: 2)))
      #expect(same != nil)
    default:
      if pairs.count > 4 { pairs.removeAll { $0 === pair } }
    }
  }

  @Test func aFailedExtendChangesNothing() throws {
    let context = try makeContext(maxBytes: 300_000)
    var options = tiny
    options.maxTokens = 160
    let cache = try Cache(context, options)
    let buffers = try Buffers(200, options)
    let pair = Pair(try TokenSequence.create(cache), Model(layers: 2))
    try pair.sequence.extend([5, 6, 7], 3)
    pair.model.extend([5, 6, 7], 3)
    try pair.write(0, 0..<3, key: 4, indexKey: 2, buffers)
    context.trim()
    let before = (context.bytesInUse, cache.usage)
    #expect(status { try pair.sequence.extend(nil, 158) } == .full)
    #expect(status { try pair.sequence.extend(nil, Int(Int32.max)) } == .argument)
    #expect(status { try pair.sequence.extend(nil, Int(Int32.max) - 3) } == .full)
    #expect(status { try pair.sequence.extend(nil, -1) } == .argument)
    #expect(context.bytesInUse == before.0 && cache.usage == before.1)
    #expect(try pair.agrees(buffers))
    try pair.sequence.extend(nil, 157)
    pair.model.extend(nil, 157)
    #expect(status { try pair.sequence.extend(nil, 1) } == .full)
    #expect(try pair.agrees(buffers))
    // A fork shares the pages; its first write needs one more.
    let fork = Pair(try pair.sequence.fork(-1), pair.model)
    #expect(status { try fork.write(0, 0..<1, key: 9, indexKey: nil, buffers) } == .full)
    #expect(try fork.agrees(buffers) && pair.agrees(buffers))

    options.maxTokens = 0
    let unbounded = try TokenSequence.create(Cache(context, options))
    context.trim()
    let bytes = context.bytesInUse
    #expect(status { try unbounded.extend(nil, 100_000) } == .budget)
    #expect(try context.bytesInUse == bytes && unbounded.length() == 0)
  }

  /// The script of every operation, with allocation n refused, for every n; refused steps are repeated.
  @Test func everyAllocationMayFail() throws {
    var n = 0
    var refusals = 0
    var total = 1
    while n < total {
      n += 1
      let allocator = Allocator()
      do {
        let context = try Context.create(allocator.options)
        allocator.fail(n..<n + 1)
        refusals += try Self.script(context)
        context.trim()
        #expect(context.bytesInUse == 0)
      }
      #expect(allocator.bytesHeld == 0)
      total = allocator.callCount
      if n == total { break }
    }
    #expect(n > 15 && refusals > 8)
  }

  /// Returns how often a step had to be repeated.
  private static func script(_ context: Context) throws -> Int {
    var refusals = 0
    func insist<Value>(_ body: () throws -> Value) throws -> Value {
      do { return try body() } catch let error as TamisError where error.status == .memory {
        refusals += 1
        return try body()
      }
    }
    let cache = try Cache(context, tiny)
    let buffers = try Buffers(100, tiny)
    let a = Pair(try insist { try TokenSequence.create(cache) }, Model(layers: 2))
    let ids = (0..<50).map { Int32($0) }
    try insist { try a.sequence.extend(ids, 50) }
    a.model.extend(ids, 50)
    for layer in 0..<2 { try insist { try a.write(layer, 0..<50, key: 3, indexKey: 4, buffers) } }
    let b = Pair(try insist { try a.sequence.fork(40) }, a.model)
    b.model.truncate(40)
    try insist { try b.write(1, 10..<38, key: 5, indexKey: 6, buffers) }
    let c = try insist { try TokenSequence.match(cache, tokens: ids, count: 50) }
    #expect(c.matched == 50)
    let third = Pair(c.sequence, a.model)
    try insist { try third.sequence.extend(nil, 45) }
    third.model.extend(nil, 45)
    try insist { try b.sequence.extend(nil, 30) }
    b.model.extend(nil, 30)
    try b.sequence.truncate(33)
    b.model.truncate(33)
    for pair in [a, b, third] { #expect(try insist { try pair.agrees(buffers) }) }
    return refusals
  }

  @Test func eightThreadsWithSequencesOfTheirOwn() throws {
    var options = tiny
    options.maxTokens = 0
    let cache = try Cache(makeContext(), options)
    let trunk = try TokenSequence.create(cache)
    let shared = (0..<37).map { Int32($0) }
    try trunk.extend(shared, 37)
    let wrong = Atomic<Int>(0)
    let trunkBuffers = try Buffers(37, options)
    trunkBuffers.fill(37, 7, 8)
    for layer in 0..<2 {
      try trunk.write(layer: layer, first: 0, key: trunkBuffers.key.tensor, value: nil, indexKey: trunkBuffers.indexKey.tensor)
    }
    onThreads(8) { [options] thread in
      do {
        let buffers = try Buffers(300, options)
        var numbers = SplitMix64(seed: UInt64(thread))
        for round in 0..<40 {
          // Others match this prefix and fork each other's pages at the same time.
          let ids = shared + (0..<10).map { _ in Int32(100 + thread) }
          let (sequence, matched) = try TokenSequence.match(cache, tokens: ids, count: ids.count)
          let pair = Pair(sequence, Model(layers: 2))
          if matched < 37 { wrong.wrappingAdd(1, ordering: .relaxed) }
          try sequence.truncate(37)
          pair.model.extend(shared, 37)
          for layer in 0..<2 {
            pair.model.keys[layer] = Array(repeating: 7, count: 37)
            pair.model.indexKeys[layer] = Array(repeating: 8, count: 37)
          }
          for _ in 0..<4 {
            let count = numbers.integer(below: 30)
            let grown = (0..<count).map { _ in Int32(100 + thread) }
            try sequence.extend(grown, count)
            pair.model.extend(grown, count)
            let first = 37 + numbers.integer(below: pair.model.tokens.count - 36)
            let value = Float(thread * 100 + round + 1)
            if first < pair.model.tokens.count {
              try pair.write(
                round % 2, first..<pair.model.tokens.count, key: value, indexKey: value, buffers)
            }
          }
          if try !pair.agrees(buffers) { wrong.wrappingAdd(1, ordering: .relaxed) }
        }
      } catch {
        wrong.wrappingAdd(1000, ordering: .relaxed)
      }
    }
    #expect(wrong.load(ordering: .relaxed) == 0)
    #expect(cache.sequenceCount == 1)
    #expect(cache.usage.tokens == 48)
  }

  /// One thread writes a sequence again and again, others match it: a match is never half of a write.
  @Test func matchesNeverSeeHalfAWrite() throws {
    var options = tiny
    options.maxTokens = 0
    options.keyDim = 256
    options.valueDim = 256
    let (rows, rounds) = (320, 500)
    let cache = try Cache(makeContext(threads: 1), options)
    let writer = try TokenSequence.create(cache)
    let ids = (0..<rows).map { Int32($0) }
    try writer.extend(ids, rows)
    let done = Atomic<Bool>(false)
    let wrong = Atomic<Int>(0)
    onThreads(4) { [options] thread in
      do {
        let buffers = try Buffers(rows, options)
        if thread == 0 {
          for round in 1...rounds {
            buffers.fill(rows, Float(round), Float(round % 1000))
            try writer.write(
              layer: 0, first: 0, key: buffers.key.tensor, value: nil, indexKey: buffers.indexKey.tensor)
          }
          done.store(true, ordering: .releasing)
          return
        }
        while !done.load(ordering: .acquiring) {
          let (sequence, matched) = try TokenSequence.match(cache, tokens: ids, count: rows)
          guard matched > 0 else { continue }
          if matched != rows { wrong.wrappingAdd(1, ordering: .relaxed) }
          for _ in 0..<2 {
            try sequence.read(
              layer: 0, first: 0, key: buffers.key.tensor, value: nil, indexKey: buffers.indexKey.tensor)
            let first = buffers.key.floats[0]
            var differing = 0
            for j in 0..<rows * 256 where buffers.key.floats[j] != first { differing += 1 }
            wrong.wrappingAdd(differing, ordering: .relaxed)
          }
        }
      } catch {
        done.store(true, ordering: .releasing)
        wrong.wrappingAdd(1000, ordering: .relaxed)
      }
    }
    #expect(wrong.load(ordering: .relaxed) == 0)
  }

  @Test func aBusySequenceIsRefused() throws {
    let host = Host()
    let context = try Context.create(host.options)
    var shape = Combination.small
    shape.pageTokens = 64
    let cache = try Cache(context, shape)
    var numbers = SplitMix64(seed: 43)
    let sequence = try TokenSequence.create(cache)
    try sequence.append(Rows32(3000, shape, &numbers), 0..<3000)
    let queries = try Queries(64, shape, indexHeads: 4, heads: 4, &numbers)
    var statuses: [Status] = []
    host.probe = {
      statuses += [
        status { try sequence.extend(nil, 1) }, status { try sequence.truncate(0) },
        status { _ = try sequence.length() }, status { _ = try sequence.fork(-1) },
      ]
    }
    _ = try run([sequence], rows: [64], queries, 0..<64, k: 16)
    #expect(statuses.count >= 8 && statuses.allSatisfy { $0 == .busy })
    host.probe = nil
    #expect(try sequence.length() == 3000)
  }

  /// In the middle of a write, the pages in front of it can be matched and the others cannot.
  @Test func rowsBeingWrittenMatchNothing() throws {
    let host = Host()
    let cache = try Cache(Context.create(host.options), Combination.small)
    let ids = (0..<3000).map { Int32($0) }
    var numbers = SplitMix64(seed: 53)
    let rows = try Rows32(3000, Combination.small, &numbers)
    let sequence = try TokenSequence.create(cache)
    try sequence.extend(ids, 3000)
    var matches: [Int] = []
    host.probe = { matches.append((try? TokenSequence.match(cache, tokens: ids, count: 3000).matched) ?? -1) }
    try sequence.write(rows, 100..<3000)
    host.probe = nil
    // Before the first row changes (the rows are looked at for NaN) all match.
    #expect(matches.first == 3000 || matches.count == 1)
    #expect(matches.last == 96)
    #expect(try TokenSequence.match(cache, tokens: ids, count: 3000).matched == 3000)
  }

  @Test func wrongBatchesAreRefused() throws {
    let context = try makeContext()
    let options = Combination.small
    let (cache, other) = try (Cache(context, options), Cache(context, options))
    var numbers = SplitMix64(seed: 47)
    let rows = try Rows32(20, options, &numbers)
    let sequences = try [cache, cache, other].map { cache in
      let sequence = try TokenSequence.create(cache)
      try sequence.append(rows, 0..<20)
      return sequence
    }
    let queries = try Queries(2, options, indexHeads: 2, heads: 4, &numbers)
    func attempt(_ chosen: [Int], _ rows: [Int], layer: Int = 0, dense: Bool = true) -> Status {
      status {
        _ = try run(chosen.map { sequences[$0] }, rows: rows, queries, 0..<2, k: 4, layer: layer, dense: dense)
      }
    }
    for dense in [true, false] {
      #expect(attempt([0, 1], [1, 1], dense: dense) == .ok)
      #expect(attempt([0, 0], [1, 1], dense: dense) == .argument)
      #expect(attempt([0, 2], [1, 1], dense: dense) == .argument)
      #expect(attempt([0, 1], [1, 2], dense: dense) == .argument)
      #expect(attempt([0, 1], [3, -1], dense: dense) == .argument)
      #expect(attempt([0], [21], dense: dense) == .argument)
      #expect(attempt([0], [2], layer: 1, dense: dense) == .argument)
      #expect(attempt([0, 1], [0, 2], dense: dense) == .ok)
    }
  }

  @Test func wrongOptionsAreRefused() throws {
    let context = try makeContext()
    func status(_ change: (inout CacheOptions) -> Void) -> Status {
      var options = CacheOptions()
      change(&options)
      return TamisTestSupport.status { _ = try Cache(context, options) }
    }
    #expect(status { _ in } == .ok)
    #expect(status { $0.pageTokens = 24 } == .argument)
    #expect(status { $0.pageTokens = 0 } == .argument)
    #expect(status { $0.kvDType = .i8 } == .argument)
    #expect(status { $0.kvDType = .mla656 } == .ok)
    #expect(status { ($0.kvDType, $0.kvHeads) = (.mla656, 2) } == .argument)
    #expect(status { ($0.kvDType, $0.ownValues) = (.mla656, true) } == .argument)
    #expect(status { $0.indexDType = .f8e4m3 } == .argument)
    #expect(status { ($0.indexDType, $0.indexDim) = (.index132, 64) } == .argument)
    #expect(status { $0.valueDim = 577 } == .argument)
    #expect(status { ($0.valueDim, $0.ownValues) = (577, true) } == .ok)
    #expect(status { $0.maxTokens = 63 } == .argument)
    #expect(status { $0.keyDim = 1 << 20 } == .unsupported)
    #expect(status { ($0.layers, $0.pageTokens) = (.max, 1 << 40) } == .argument)
  }
}
