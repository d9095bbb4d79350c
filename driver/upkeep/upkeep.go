// Package upkeep looks after the host as long as the agent runs. It removes
// machines that no task owns any more, and images that no task uses.
package upkeep

import "time"

// timeout bounds one round. The next round goes on with what is left.
const timeout = 2 * time.Minute
