// Who besides the counters is told what a call did: a meter. A thread enters recorders and leaves them in the reverse
// order; the innermost is told of the thread's calls, whatever their context. Refuses to leave what was not entered
// last. A thread that ends without leaving keeps its recorder alive for ever.

import TamisShims

package struct Recorder: Sendable {
  /// Names whoever is told; `add` keeps it alive.
  package let identity: UInt
  package let add: @Sendable (Operator, Sample) -> Void

  package init(identity: UInt, add: @escaping @Sendable (Operator, Sample) -> Void) {
    self.identity = identity
    self.add = add
  }

  /// The recorder that the calling thread entered last.
  package static var current: Recorder? { entered?.recorder }

  package static let deepest = 64

  package func enter() throws(TamisError) {
    let entry = Entry(self, outer: Recorder.entered)
    guard entry.depth <= Recorder.deepest else {
      throw TamisError(.argument, "meter: more than \(Recorder.deepest) entered and not left on this thread")
    }
    tamis_shims_set_charged(Unmanaged.passRetained(entry).toOpaque())
  }

  package static func leave(identity: UInt) throws(TamisError) {
    guard let memory = tamis_shims_charged(), let entry = entered, entry.recorder.identity == identity else {
      throw TamisError(.argument, "meter: is not the one that this thread entered last")
    }
    tamis_shims_set_charged(entry.outer.map { Unmanaged.passUnretained($0).toOpaque() })
    Unmanaged<Entry>.fromOpaque(memory).release()
  }

  private static var entered: Entry? {
    tamis_shims_charged().map { Unmanaged<Entry>.fromOpaque($0).takeUnretainedValue() }
  }

  /// One level of a thread's stack. The thread-local pointer owns one reference of each level.
  private final class Entry {
    let recorder: Recorder
    let outer: Entry?
    let depth: Int
    init(_ recorder: Recorder, outer: Entry?) {
      depth = (outer?.depth ?? 0) &+ 1
      self.recorder = recorder
      self.outer = outer
    }
  }
}
