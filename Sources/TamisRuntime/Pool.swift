// Threads for one context: runs the items of a parallel call on the caller and on workers of our own, or on the
// host's. Workers are made at the first call that wants them and live until the context goes. Whoever cannot
// have help (no memory, no threads, somebody else's region is open) works alone: a parallel call never fails.
import Glibc
import Synchronization
import TamisKernels

final class Pool: @unchecked Sendable {
  private let kernels: UnsafePointer<tk_table>
  private let threads: Int
  private let memory: Memory

  /// The process whose region is open, 0: none. A number, so that a forked child knows its parent's from its own.
  private let holder = Atomic<Int32>(0)
  // The rest belongs to whoever holds the region.
  private var board: Board?
  private var workers: [pthread_t] = []
  private var process: Int32 = 0

  init(kernels: UnsafePointer<tk_table>, threads: Int, memory: Memory) {
    self.kernels = kernels
    self.threads = threads
    self.memory = memory
  }

  deinit {
    if process == getpid() {
      board?.stop()
      for worker in workers { pthread_join(worker, nil) }
    }
    if let board { memory.release(board.memory, bytes: Board.bytes) }
  }

  /// See Context.parallel.
  func parallel(
    count: Int, workers: Int, host: ContextOptions.Parallel?, user: UnsafeMutableRawPointer?,
    _ body: (Int, Int) -> Void
  ) -> UInt64 {
    let lanes = min(workers, threads)
    let here = getpid()
    guard count > 1, lanes > 1, hold(here) else {
      runAlone(count: count, body)
      return 0
    }
    defer { holder.store(0, ordering: .releasing) }
    return withoutActuallyEscaping(body) { body in
      if let host {
        let region = HostRegion(count: count, lanes: min(lanes, count), kernels: kernels, body: body)
        return region.run(on: host, user: user)
      }
      adopt(here)
      return runTogether(count: count, lanes: lanes, body)
    }
  }

  private func runAlone(count: Int, _ body: (Int, Int) -> Void) {
    let outer = KernelRegion.enter(kernels)
    defer { KernelRegion.leave(kernels, outer: outer) }
    var item = 0
    while item < count {
      body(item, 0)
      item &+= 1
    }
  }

  /// One region for each 2^32 - 1 items.
  private func runTogether(count: Int, lanes: Int, _ body: @escaping (Int, Int) -> Void) -> UInt64 {
    guard let board = prepare(lanes: lanes), !workers.isEmpty else {
      runAlone(count: count, body)
      return 0
    }
    let outer = KernelRegion.enter(kernels)
    defer { KernelRegion.leave(kernels, outer: outer) }
    var cpuNanoseconds: UInt64 = 0
    var first = 0
    while first < count {
      let items = UInt32(clamping: count &- first)
      let job = Job(body: body, first: first)
      withUnsafePointer(to: job) { job in
        board.open(job, count: items, lanes: lanes, wake: wake(lanes: lanes, items: items))
        let own = board.drain(lane: 0)
        cpuNanoseconds &+= board.wait(items: items &- own)
      }
      first &+= Int(items)
    }
    return cpuNanoseconds
  }

  /// Any sleeper may be woken, so all are when some of them have no lane in this call.
  private func wake(lanes: Int, items: UInt32) -> Int {
    workers.count < lanes ? min(lanes, Int(items)) &- 1 : workers.count
  }

  /// Takes the region unless another thread of this process has it. One that a thread of the parent process
  /// held when it forked is free: that thread does not exist here.
  private func hold(_ process: Int32) -> Bool {
    var expected: Int32 = 0
    while true {
      let (taken, seen) = holder.compareExchange(
        expected: expected, desired: process, ordering: .acquiringAndReleasing)
      if taken { return true }
      if seen == process { return false }
      expected = seen
    }
  }

  /// In a forked child: the workers are the parent's, and the board may show a region that is not ours.
  private func adopt(_ here: Int32) {
    guard process != here else { return }
    workers.removeAll()
    board = board.map { Board(memory: $0.memory) }
    process = here
  }

  /// The board with as many workers as there can be, up to lanes - 1; nil without memory.
  private func prepare(lanes: Int) -> Board? {
    guard let board = board ?? makeBoard() else { return nil }
    while workers.count < lanes &- 1 {
      guard let worker = Worker.start(board: board, kernels: kernels, lane: workers.count &+ 1) else { break }
      workers.append(worker)
    }
    return board
  }

  private func makeBoard() -> Board? {
    guard let memory = try? memory.allocate(bytes: Board.bytes, alignment: 64, what: "thread pool") else {
      return nil
    }
    let made = Board(memory: memory)
    board = made
    return made
  }
}
