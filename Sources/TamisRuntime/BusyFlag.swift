// Detects two threads inside an object that only one may use at a time. It never waits: the second one is
// refused with .busy.
import Synchronization

package struct BusyFlag: ~Copyable, Sendable {
  private let taken = Atomic<Bool>(false)

  package init() {}

  /// True when the caller is now the only one inside and owes a `leave`.
  package func tryEnter() -> Bool {
    taken.compareExchange(expected: false, desired: true, ordering: .acquiringAndReleasing).exchanged
  }

  /// `what` names the object in the error: "sequence".
  package func enter(_ what: StaticString) throws(TamisError) {
    guard tryEnter() else {
      throw TamisError(.busy, "\(what) is in use by another thread; use it from one thread at a time")
    }
  }

  package func leave() {
    taken.store(false, ordering: .releasing)
  }
}
