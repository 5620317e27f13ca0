// One thread of a pool: sleeps until a region opens, takes items while there are any, sleeps again. It calls
// nothing of the host's, answers no signal meant for the host, and ends when the board says so.
import Glibc
import TamisKernels
import TamisShims

final class Worker {
  /// Only touched where used; unoptimised builds of the kernels have frames of almost a megabyte.
  private static let stackBytes = 4 << 20

  private let board: Board
  private let kernels: UnsafePointer<tk_table>
  private let lane: Int

  private init(board: Board, kernels: UnsafePointer<tk_table>, lane: Int) {
    self.board = board
    self.kernels = kernels
    self.lane = lane
  }

  /// Nil when the system has no thread to give.
  static func start(board: Board, kernels: UnsafePointer<tk_table>, lane: Int) -> pthread_t? {
    var attributes = pthread_attr_t()
    guard pthread_attr_init(&attributes) == 0 else { return nil }
    defer { pthread_attr_destroy(&attributes) }
    pthread_attr_setstacksize(&attributes, stackBytes)
    let worker = Unmanaged.passRetained(Worker(board: board, kernels: kernels, lane: lane))
    var thread = pthread_t()
    let made = withSignalsBlocked {
      pthread_create(&thread, &attributes, { argument in
        guard let argument else { return nil }
        Unmanaged<Worker>.fromOpaque(argument).takeRetainedValue().live()
        return nil
      }, worker.toOpaque())
    }
    guard made == 0 else {
      worker.release()
      return nil
    }
    return thread
  }

  /// A new thread inherits the mask. Faults stay open, so that the host's crash reporter sees them.
  private static func withSignalsBlocked(_ body: () -> Int32) -> Int32 {
    var mask = sigset_t()
    var saved = sigset_t()
    sigfillset(&mask)
    for fault in [SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS] { sigdelset(&mask, fault) }
    pthread_sigmask(SIG_SETMASK, &mask, &saved)
    defer { pthread_sigmask(SIG_SETMASK, &saved, nil) }
    return body()
  }

  private func live() {
    tamis_shims_name_thread("tamis")
    // Not the board's present region: it, or the order to stop, may have come before this thread ran.
    var seen: UInt32 = 0
    while board.waitForRegion(&seen) {
      if board.wants(lane: lane) { work() }
    }
  }

  private func work() {
    let begin = Clock.threadCPU()
    let outer = KernelRegion.enter(kernels)
    let items = board.drain(lane: lane)
    KernelRegion.leave(kernels, outer: outer)
    guard items != 0 else { return }
    board.finish(items: items, cpuNanoseconds: Clock.threadCPU() &- begin)
  }
}
