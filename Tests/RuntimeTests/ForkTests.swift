// A forked child works on with the contexts of its parent: it makes workers of its own, waits for none of the
// parent's, and frees in any order.
import Glibc
import Synchronization
import TamisRuntime
import TamisTestSupport
import Testing

@Suite struct ForkTests {
  private typealias Fork = @convention(c) () -> pid_t

  /// Swift hides fork; the dynamic linker does not.
  private static let fork: Fork? = dlsym(nil, "fork").map { unsafeBitCast($0, to: Fork.self) }
  /// ThreadSanitizer refuses new threads in a forked child.
  private static let possible = dlsym(nil, "__tsan_init") == nil

  /// The child's exit status, or nil when it hangs (it is then killed).
  private func inChild(_ body: () -> Bool) -> Int32? {
    guard let fork = Self.fork else { return nil }
    let child = fork()
    if child == 0 { _exit(body() ? 0 : 1) }
    for _ in 0..<6000 {
      var status: Int32 = 0
      if waitpid(child, &status, WNOHANG) == child { return status }
      usleep(5000)
    }
    kill(child, SIGKILL)
    waitpid(child, nil, 0)
    return nil
  }

  private func works(_ context: Context) -> Bool {
    for _ in 0..<200 {
      let items = Tally(50)
      context.parallel(count: 50, workers: 4) { item, _ in items.add(item) }
      if items.all != Array(repeating: 1, count: 50) { return false }
    }
    return true
  }

  /// Two items that wait for each other, five seconds at most: true when a worker came.
  private func hasWorkers(_ context: Context) -> Bool {
    let arrived = Atomic<Int>(0)
    let deadline = Clock.wall() + 5_000_000_000
    context.parallel(count: 2, workers: 2) { _, _ in
      arrived.wrappingAdd(1, ordering: .relaxed)
      while arrived.load(ordering: .relaxed) < 2 && Clock.wall() < deadline { sched_yield() }
      if Clock.wall() >= deadline { arrived.store(-10, ordering: .relaxed) }
    }
    return arrived.load(ordering: .relaxed) == 2
  }

  @Test(.enabled(if: possible)) func childWorksOn() throws {
    let context = try makeContext(threads: 4)
    #expect(works(context) && hasWorkers(context))
    #expect(inChild { works(context) && hasWorkers(context) } == 0)
    #expect(works(context))
  }

  @Test(.enabled(if: possible)) func childFreesWithoutWaiting() throws {
    var used: Context? = try makeContext(threads: 4)
    var unused: Context? = try makeContext(threads: 4)
    #expect(used.map { works($0) } == true)
    let status = inChild {
      used = nil
      let right = unused.map { works($0) } == true
      unused = nil
      return right
    }
    #expect(status == 0)
  }

  /// A fork while another thread's region is open: the child must not believe that it still is.
  @Test(.enabled(if: possible)) func forkDuringAParallelCall() throws {
    let context = try makeContext(threads: 4)
    #expect(works(context) && hasWorkers(context))
    var answers: [Int32?] = []
    context.parallel(count: 2, workers: 2) { item, _ in
      if item == 0 { answers.append(inChild { works(context) && hasWorkers(context) }) }
    }
    #expect(answers == [0])
  }
}
