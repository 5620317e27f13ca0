// A context: what calls share. Kernels, threads, memory, cancellation, counters and the log callback meet here;
// each has its own file. A context may be used from many threads. It prints nothing, makes no thread before the
// first parallel call that wants one, and reads no environment.
import Glibc
import Synchronization
package import TamisKernels
import TamisShims

/// The host's choices; the C function pointers are those of `tamis_ctx_options`.
package struct ContextOptions: @unchecked Sendable {
  package typealias Allocate =
    @convention(c) (_ user: UnsafeMutableRawPointer?, _ bytes: Int, _ alignment: Int) -> UnsafeMutableRawPointer?
  package typealias Release =
    @convention(c) (_ user: UnsafeMutableRawPointer?, _ memory: UnsafeMutableRawPointer?, _ bytes: Int) -> Void
  package typealias Task = @convention(c) (_ argument: UnsafeMutableRawPointer?, _ index: Int) -> Void
  package typealias Parallel =
    @convention(c) (
      _ user: UnsafeMutableRawPointer?, _ count: Int, _ task: Task?, _ argument: UnsafeMutableRawPointer?
    ) -> Void
  package typealias Log =
    @convention(c) (_ user: UnsafeMutableRawPointer?, _ level: Int32, _ message: UnsafePointer<CChar>?) -> Void

  /// 0: what affinity and control group allow; 1: no thread is ever made.
  package var threads: UInt32 = 0
  /// 0: no limit.
  package var maxBytes: UInt64 = 0
  /// The best instruction set to use; nil or "": no cap.
  package var isaCap: String?
  /// Both or neither; called on the thread that made the call.
  package var allocate: Allocate?
  package var release: Release?
  /// Runs `count` tasks on the host's threads and returns when all are done; nil: threads of our own.
  package var parallel: Parallel?
  package var log: Log?
  package var user: UnsafeMutableRawPointer?
  /// Is told of every call besides the counters.
  package var recorder: Recorder?

  package init() {}
}

package enum LogLevel: Int32, Sendable {
  case error = 1, warning = 2, info = 3, debug = 4
}

/// What `cancel` ends: the calls that were running at that moment.
package struct CallToken: Sendable {
  fileprivate let epoch: UInt64
}

package final class Context: @unchecked Sendable {
  /// For calls without a context: the calling thread, malloc, no counting, at most 4 MiB of scratch kept.
  package static let unmetered = Context(
    options: ContextOptions(), kernels: tk_choose(nil), threads: 1, keptScratchBytes: 4 << 20, counting: false)

  package static let maximumThreads = 1024
  private static let keptScratchBytes = 64 << 20

  package let kernels: UnsafePointer<tk_table>
  /// The most workers a parallel call can have, the caller included.
  package let threads: Int
  package let counters: Counters

  private let options: ContextOptions
  private let memory: Memory
  private let pool: Pool
  private let epoch = Atomic<UInt64>(0)

  package static func create(_ options: ContextOptions) throws(TamisError) -> Context {
    guard options.threads <= UInt32(maximumThreads) else {
      throw TamisError(.argument, "context: \(options.threads) threads, expected at most \(maximumThreads)")
    }
    guard (options.allocate == nil) == (options.release == nil) else {
      throw TamisError(.argument, "context: alloc and release must be given both or not at all")
    }
    let table: UnsafePointer<tk_table>? = tk_choose(options.isaCap)
    guard let table else {
      throw TamisError(.argument, "context: unknown isa \"\(options.isaCap ?? "")\"")
    }
    let threads = options.threads == 0 ? min(Processors.allowed(), maximumThreads) : Int(options.threads)
    return Context(
      options: options, kernels: table, threads: threads, keptScratchBytes: keptScratchBytes, counting: true)
  }

  private init(
    options: ContextOptions, kernels: UnsafePointer<tk_table>, threads: Int, keptScratchBytes: Int, counting: Bool
  ) {
    self.options = options
    self.kernels = kernels
    self.threads = threads
    self.counters = Counters(counting: counting, root: options.recorder)
    self.memory = Memory(options: options, keptScratchBytes: keptScratchBytes)
    self.pool = Pool(kernels: kernels, threads: threads, memory: memory)
  }

  // MARK: Memory

  /// Charged against `maxBytes`. Throws .budget where that is exhausted and .memory where the allocator fails.
  package func allocate(
    bytes: Int, alignment: Int = 64, what: StaticString
  ) throws(TamisError) -> UnsafeMutableRawPointer {
    try memory.allocate(bytes: bytes, alignment: alignment, what: what)
  }

  /// `bytes` as it was given to `allocate`.
  package func release(_ memory: UnsafeMutableRawPointer, bytes: Int) {
    self.memory.release(memory, bytes: bytes)
  }

  package var bytesInUse: UInt64 { memory.bytesInUse }
  package var peakBytes: UInt64 { memory.peakBytes }

  /// Working memory of at least `bytes`, contents undefined, to be given back with `returnScratch`.
  package func borrowScratch(bytes: Int) throws(TamisError) -> Scratch { try memory.borrowScratch(bytes: bytes) }
  package func returnScratch(_ scratch: Scratch) { memory.returnScratch(scratch) }

  /// Gives cached scratch back to the allocator.
  package func trim() { memory.trim() }

  // MARK: Cancellation

  package func beginCall() -> CallToken { CallToken(epoch: epoch.load(ordering: .acquiring)) }

  /// True once `cancel` was called after the token was made.
  package func cancelled(_ token: CallToken) -> Bool { epoch.load(ordering: .relaxed) != token.epoch }

  package func checkCancelled(_ token: CallToken) throws(TamisError) {
    guard !cancelled(token) else { throw TamisError(.cancelled, "the call was cancelled") }
  }

  /// From any thread: every call that runs now ends with .cancelled soon. Later calls are not affected.
  package func cancel() { epoch.wrappingAdd(1, ordering: .acquiringAndReleasing) }

  // MARK: Work

  /// Runs body on the calling thread between the kernels' `enter` and `leave`.
  package func run<Result>(_ body: () throws(TamisError) -> Result) throws(TamisError) -> Result {
    let outer = KernelRegion.enter(kernels)
    defer { KernelRegion.leave(kernels, outer: outer) }
    return try body()
  }

  /// Calls body once for each item in 0..<count, between the kernels' `enter` and `leave`, on up to `workers`
  /// threads (at most `threads`), the caller's among them; returns when all are done. `worker` in 0..<workers is
  /// one thread's at any time. Returns the nanoseconds of processor time that the other threads spent.
  /// A call from inside a body, or while another thread's parallel call runs, works alone.
  /// body must not allocate through the context: the host's callbacks run on the calling thread only.
  @discardableResult
  package func parallel(count: Int, workers: Int, _ body: (_ item: Int, _ worker: Int) -> Void) -> UInt64 {
    pool.parallel(count: count, workers: min(workers, threads), host: options.parallel, user: options.user, body)
  }

  // MARK: Log

  package func log(_ level: LogLevel, _ message: String) {
    guard let log = options.log else { return }
    message.withCString { log(options.user, level.rawValue, $0) }
  }
}
