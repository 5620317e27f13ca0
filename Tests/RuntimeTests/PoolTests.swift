// Parallel calls: each item once, each lane one thread's, whatever the counts, callers and nesting.
import Glibc
import Synchronization
import TamisRuntime
import TamisShims
import TamisTestSupport
import Testing

@Suite struct PoolTests {
  @Test(arguments: [1, 2, 3, 4, 8])
  func everyItemRunsOnce(threads: UInt32) throws {
    let context = try makeContext(threads: threads)
    for count in [0, 1, 2, 3, 7, 64, 1000] {
      for workers in [-1, 0, 1, 2, 3, 8, 100] {
        let items = Tally(count)
        let bound = max(1, min(workers, Int(threads)))
        let outside = Atomic<Int>(0)
        context.parallel(count: count, workers: workers) { item, worker in
          items.add(item)
          if worker < 0 || worker >= bound { outside.wrappingAdd(1, ordering: .relaxed) }
        }
        #expect(items.all == Array(repeating: 1, count: count), "\(count) items, \(workers) workers")
        #expect(outside.load(ordering: .relaxed) == 0)
      }
    }
  }

  @Test func negativeCountRunsNothing() throws {
    let context = try makeContext(threads: 2)
    context.parallel(count: -5, workers: 2) { _, _ in Issue.record("no item was asked for") }
  }

  /// Many short regions: results that a worker writes without atomics are visible when the call returns.
  @Test func resultsAreVisible() throws {
    let context = try makeContext(threads: 4)
    var values = [Int](repeating: 0, count: 37)
    for round in 1...3000 {
      values.withUnsafeMutableBufferPointer { buffer in
        let base = buffer.baseAddress
        context.parallel(count: 37, workers: 4) { item, _ in base?[item] += item &* round }
      }
    }
    let sum = 3000 * 3001 / 2
    #expect(values == (0..<37).map { $0 * sum })
  }

  /// A lane's scratch has one user at a time: unprotected writes to it must not get lost.
  @Test func laneBelongsToOneThread() throws {
    let context = try makeContext(threads: 4)
    let lanes = UnsafeMutablePointer<Int>.allocate(capacity: 4)
    lanes.initialize(repeating: 0, count: 4)
    defer { lanes.deallocate() }
    for _ in 0..<200 { context.parallel(count: 100, workers: 4) { _, worker in lanes[worker] += 1 } }
    #expect((0..<4).reduce(0) { $0 + lanes[$1] } == 20_000)
  }

  /// Workers that a larger call made stay out of a smaller one; items sleep so that they would have the time.
  @Test func fewerWorkersThanThreads() throws {
    let context = try makeContext(threads: 4)
    let lanes = Tally(4)
    for _ in 0..<5 {
      context.parallel(count: 64, workers: 4) { _, _ in }
      context.parallel(count: 40, workers: 2) { _, worker in
        lanes.add(worker)
        usleep(200)
      }
    }
    #expect(lanes[0] + lanes[1] == 200)
  }

  /// Two items that wait for each other can only finish on two threads.
  @Test func workersReallyRunTogether() throws {
    let context = try makeContext(threads: 2)
    let arrived = Atomic<Int>(0)
    let spent = context.parallel(count: 2, workers: 2) { _, _ in
      arrived.wrappingAdd(1, ordering: .relaxed)
      while arrived.load(ordering: .relaxed) < 2 { sched_yield() }
    }
    #expect(arrived.load(ordering: .relaxed) == 2)
    #expect(spent > 0)
  }

  @Test func workerWakesFromSleep() throws {
    let context = try makeContext(threads: 2)
    for _ in 0..<5 {
      let arrived = Atomic<Int>(0)
      context.parallel(count: 2, workers: 2) { _, _ in
        arrived.wrappingAdd(1, ordering: .relaxed)
        while arrived.load(ordering: .relaxed) < 2 { sched_yield() }
      }
      usleep(20_000)
    }
  }

  @Test func oneThreadMakesNoThread() throws {
    let context = try makeContext(threads: 1)
    let here = pthread_self()
    let elsewhere = Atomic<Int>(0)
    let spent = context.parallel(count: 100, workers: 8) { _, _ in
      if pthread_equal(pthread_self(), here) == 0 { elsewhere.wrappingAdd(1, ordering: .relaxed) }
    }
    #expect(elsewhere.load(ordering: .relaxed) == 0)
    #expect(spent == 0)
  }

  @Test func nestedCallsRunAlone() throws {
    let context = try makeContext(threads: 3)
    let items = Tally(20 * 30)
    let strangers = Atomic<Int>(0)
    context.parallel(count: 20, workers: 3) { outer, _ in
      let here = pthread_self()
      context.parallel(count: 30, workers: 3) { inner, worker in
        items.add(outer * 30 + inner)
        if worker != 0 || pthread_equal(pthread_self(), here) == 0 { strangers.wrappingAdd(1, ordering: .relaxed) }
      }
    }
    #expect(items.all == Array(repeating: 1, count: 600))
    #expect(strangers.load(ordering: .relaxed) == 0)
  }

  @Test func callersOnManyThreads() throws {
    let context = try makeContext(threads: 3)
    let items = Tally(6 * 50)
    onThreads(6) { caller in
      for _ in 0..<200 { context.parallel(count: 50, workers: 3) { item, _ in items.add(caller * 50 + item) } }
    }
    #expect(items.all == Array(repeating: 200, count: 300))
  }

  @Test func contextsComeAndGo() throws {
    for round in 0..<50 {
      let context = try makeContext(threads: 4)
      let items = Tally(5)
      if round % 2 == 0 { context.parallel(count: 5, workers: 4) { item, _ in items.add(item) } }
      #expect(items.all == Array(repeating: round % 2 == 0 ? 1 : 0, count: 5))
    }
  }

  /// Without memory for the pool the call works alone and is right.
  @Test func noMemoryForThreads() throws {
    let allocator = Allocator()
    allocator.fail(from: 1)
    var options = allocator.options
    options.threads = 4
    let context = try Context.create(options)
    let items = Tally(40)
    context.parallel(count: 40, workers: 4) { item, _ in items.add(item) }
    #expect(items.all == Array(repeating: 1, count: 40))
    #expect(allocator.callCount > 0)
  }

  /// From a host thread that blocks nothing: its worker must, except for faults, and its own mask stays.
  @Test func workersBlockTheHostsSignals() throws {
    let context = try makeContext(threads: 2)
    let right = Tally(2)
    onThreads(1) { _ in
      var none = sigset_t()
      sigemptyset(&none)
      pthread_sigmask(SIG_SETMASK, &none, nil)
      let here = pthread_self()
      let arrived = Atomic<Int>(0)
      context.parallel(count: 2, workers: 2) { _, _ in
        arrived.wrappingAdd(1, ordering: .relaxed)
        while arrived.load(ordering: .relaxed) < 2 { sched_yield() }
        guard pthread_equal(pthread_self(), here) == 0 else { return }
        if Self.blocked([SIGINT, SIGTERM, SIGCHLD, SIGUSR1]) == 4 && Self.blocked([SIGSEGV, SIGBUS, SIGFPE]) == 0 {
          right.add(0)
        }
      }
      if Self.blocked([SIGINT, SIGTERM, SIGCHLD, SIGUSR1]) == 0 { right.add(1) }
    }
    #expect(right.all == [1, 1])
  }

  private static func blocked(_ signals: [Int32]) -> Int {
    var mask = sigset_t()
    pthread_sigmask(SIG_SETMASK, nil, &mask)
    return signals.filter { sigismember(&mask, $0) == 1 }.count
  }
}

/// The host's threads.
@Suite struct HostParallelTests {
  /// Runs the tasks on real threads.
  private static let threaded: ContextOptions.Parallel = { _, count, task, argument in
    let address = UInt(bitPattern: argument)
    onThreads(count) { index in task?(UnsafeMutableRawPointer(bitPattern: address), index) }
  }
  /// A host that runs only the first task, twice, and with a strange index.
  private static let careless: ContextOptions.Parallel = { _, _, task, argument in
    task?(argument, -7)
    task?(argument, -7)
  }
  private static let absent: ContextOptions.Parallel = { _, _, _, _ in }
  private static let greedy: ContextOptions.Parallel = { _, count, task, argument in
    for index in 0..<count * 3 { task?(argument, index) }
  }

  @Test(arguments: [0, 1, 2, 3])
  func everyItemRunsOnce(kind: Int) throws {
    var options = ContextOptions()
    options.threads = 4
    options.parallel = [Self.threaded, Self.careless, Self.absent, Self.greedy][kind]
    let context = try Context.create(options)
    for count in [0, 1, 2, 5, 300] {
      let items = Tally(count)
      let outside = Atomic<Int>(0)
      context.parallel(count: count, workers: 4) { item, worker in
        items.add(item)
        if !(0..<4).contains(worker) { outside.wrappingAdd(1, ordering: .relaxed) }
        context.parallel(count: 2, workers: 4) { _, lane in
          if lane != 0 { outside.wrappingAdd(1, ordering: .relaxed) }
        }
      }
      #expect(items.all == Array(repeating: 1, count: count))
      #expect(outside.load(ordering: .relaxed) == 0)
    }
  }
}
