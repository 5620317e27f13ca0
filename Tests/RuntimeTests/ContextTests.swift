// Options, memory and its budget, scratch, cancellation, log.
import Glibc
import TamisRuntime
import TamisTestSupport
import Testing

@Suite struct ContextTests {
  @Test func refusesImpossibleOptions() {
    var many = ContextOptions()
    many.threads = .max
    #expect(status { _ = try Context.create(many) } == .argument)
    var unknown = ContextOptions()
    unknown.isaCap = "abacus"
    #expect(status { _ = try Context.create(unknown) } == .argument)
    var half = ContextOptions()
    half.allocate = { _, bytes, _ in malloc(bytes) }
    #expect(status { _ = try Context.create(half) } == .argument)
  }

  @Test func defaultThreadsArePossible() throws {
    let context = try Context.create(ContextOptions())
    #expect(context.threads >= 1)
    #expect(context.threads <= sysconf(Int32(_SC_NPROCESSORS_CONF)))
  }

  @Test func unmeteredCountsNothing() {
    var sample = Sample()
    sample.calls = 1
    Context.unmetered.counters.add(.select, sample)
    #expect(Context.unmetered.counters.snapshot() == Sample())
    #expect(Context.unmetered.threads == 1)
  }

  @Test func budgetIsExact() throws {
    var options = ContextOptions()
    options.maxBytes = 1000
    let context = try Context.create(options)
    let first = try context.allocate(bytes: 600, what: "test")
    #expect(status { _ = try context.allocate(bytes: 401, what: "test") } == .budget)
    let second = try context.allocate(bytes: 400, what: "test")
    #expect(context.bytesInUse == 1000)
    #expect(UInt(bitPattern: first) % 64 == 0)
    context.release(first, bytes: 600)
    context.release(second, bytes: 400)
    #expect(context.bytesInUse == 0)
    #expect(context.peakBytes == 1000)
  }

  @Test func refusesImpossibleSizes() throws {
    var options = ContextOptions()
    options.maxBytes = 1 << 40
    let context = try Context.create(options)
    for bytes in [-1, Int.min] {
      #expect(status { _ = try context.allocate(bytes: bytes, what: "test") } == .argument)
      #expect(status { _ = try context.borrowScratch(bytes: bytes) } == .argument)
    }
    #expect(status { _ = try context.allocate(bytes: .max, what: "test") } == .budget)
    #expect(status { _ = try context.borrowScratch(bytes: .max) } == .argument)
    #expect(
      status { _ = try context.allocate(bytes: 8, alignment: 24, what: "test") } == .argument)
    #expect(context.bytesInUse == 0)
  }

  @Test func nothingIsAskedOfTheHostBeforeUse() throws {
    let allocator = Allocator()
    let context = try Context.create(allocator.options)
    #expect(allocator.callCount == 0)
    withExtendedLifetime(context) {}
  }

  /// The n-th allocation fails, for every n: the status says so and nothing is lost.
  @Test func everyAllocationMayFail() throws {
    for call in 1...6 {
      let allocator = Allocator()
      allocator.fail(from: call)
      do {
        let context = try Context.create(allocator.options)
        var held: [UnsafeMutableRawPointer] = []
        for _ in 1..<call { held.append(try context.allocate(bytes: 100, what: "test")) }
        #expect(status { _ = try context.allocate(bytes: 100, what: "test") } == .memory)
        #expect(status { _ = try context.borrowScratch(bytes: 100) } == .memory)
        #expect(context.bytesInUse == UInt64(100 * (call - 1)))
        for memory in held { context.release(memory, bytes: 100) }
        #expect(context.bytesInUse == 0)
      }
      #expect(allocator.bytesHeld == 0)
    }
  }

  @Test func misalignedHostMemoryIsRefused() throws {
    var options = ContextOptions()
    options.allocate = { _, bytes, alignment in
      var memory: UnsafeMutableRawPointer?
      return posix_memalign(&memory, alignment, bytes + 8) == 0 ? memory.map { $0 + 8 } : nil
    }
    options.release = { _, memory, _ in free(memory.map { $0 - 8 }) }
    let context = try Context.create(options)
    #expect(status { _ = try context.allocate(bytes: 64, what: "test") } == .memory)
    #expect(context.bytesInUse == 0)
  }

  @Test func cancelEndsRunningCallsOnly() throws {
    let context = try makeContext(threads: 2)
    let running = context.beginCall()
    #expect(!context.cancelled(running))
    onThreads(1) { _ in context.cancel() }
    #expect(context.cancelled(running))
    #expect(status { try context.checkCancelled(running) } == .cancelled)
    let later = context.beginCall()
    #expect(!context.cancelled(later))
  }

  @Test func logReachesTheHost() throws {
    final class Lines { var text: [String] = [] }
    let lines = Lines()
    var options = ContextOptions()
    options.user = Unmanaged.passUnretained(lines).toOpaque()
    options.log = { user, level, message in
      guard let user, let message else { return }
      Unmanaged<Lines>.fromOpaque(user).takeUnretainedValue().text.append("\(level) \(String(cString: message))")
    }
    try Context.create(options).log(.warning, "two words")
    #expect(lines.text == ["2 two words"])
    try makeContext(threads: 1).log(.error, "nobody listens")
  }
}

@Suite struct ScratchTests {
  @Test func blocksAreReused() throws {
    let allocator = Allocator()
    let context = try Context.create(allocator.options)
    let first = try context.borrowScratch(bytes: 10_000)
    #expect(first.capacity >= 10_000)
    context.returnScratch(first)
    for _ in 0..<100 {
      let again = try context.borrowScratch(bytes: 9_000)
      #expect(again.pointer == first.pointer)
      context.returnScratch(again)
    }
    #expect(allocator.callCount == 1)
  }

  @Test func theSmallestThatFitsIsTaken() throws {
    let context = try makeContext(threads: 1)
    let blocks = try [1 << 20, 1 << 14, 1 << 17].map { try context.borrowScratch(bytes: $0) }
    for block in blocks { context.returnScratch(block) }
    let taken = try context.borrowScratch(bytes: 1 << 15)
    #expect(taken.pointer == blocks[2].pointer)
    context.returnScratch(taken)
  }

  /// Kept memory is bounded in bytes and in blocks, and trim gives it all back.
  @Test func whatIsKeptIsBounded() throws {
    let allocator = Allocator()
    let context = try Context.create(allocator.options)
    let large = try (0..<20).map { _ in try context.borrowScratch(bytes: 8 << 20) }
    for block in large { context.returnScratch(block) }
    #expect(context.bytesInUse <= 64 << 20)
    #expect(context.bytesInUse > 0)
    let huge = try context.borrowScratch(bytes: 65 << 20)
    context.returnScratch(huge)
    #expect(context.bytesInUse <= 64 << 20)
    context.trim()
    #expect(context.bytesInUse == 0)
    let small = try (0..<100).map { _ in try context.borrowScratch(bytes: 1) }
    for block in small { context.returnScratch(block) }
    #expect(context.bytesInUse == 16 * 4096)
    context.trim()
    #expect(allocator.bytesHeld == 0)
  }

  @Test func cachedScratchYieldsToTheBudget() throws {
    var options = ContextOptions()
    options.maxBytes = 1 << 20
    let context = try Context.create(options)
    context.returnScratch(try context.borrowScratch(bytes: 900 << 10))
    let block = try context.allocate(bytes: 800 << 10, what: "test")
    #expect(context.bytesInUse == 800 << 10)
    context.release(block, bytes: 800 << 10)
  }

  @Test func freeingTheContextFreesScratch() throws {
    let allocator = Allocator()
    do {
      let context = try Context.create(allocator.options)
      context.returnScratch(try context.borrowScratch(bytes: 1 << 20))
      context.parallel(count: 10, workers: 3) { _, _ in }
      #expect(allocator.bytesHeld > 0)
    }
    #expect(allocator.bytesHeld == 0)
  }

  @Test func manyThreadsShareTheCache() throws {
    let allocator = Allocator()
    let context = try Context.create(allocator.options)
    let torn = Tally(8)
    onThreads(8) { thread in
      for round in 0..<500 {
        guard let scratch = try? context.borrowScratch(bytes: 64 + round % 7 * 4096) else { continue }
        let words = scratch.pointer.assumingMemoryBound(to: Int.self)
        words[0] = thread
        words[7] = round
        sched_yield()
        if words[0] != thread || words[7] != round { torn.add(thread) }
        context.returnScratch(scratch)
      }
    }
    #expect(torn.all == Array(repeating: 0, count: 8))
    context.trim()
    #expect(allocator.bytesHeld == 0)
    #expect(context.bytesInUse == 0)
  }
}
