// Package upkeep maintains the host while the agent runs. It removes machines that no task
// owns any more, and images that no task uses. It keeps tasks off the cores that Nomad has
// reserved for others.
package upkeep

import "time"

// timeout limits one round. The next round continues with what is left.
const timeout = 2 * time.Minute
