package job

import (
	"fmt"

	"nomad-driver-nspawn/driver/schema"
)

// olderOptions are options of the older driver for nspawn that have no effect here, or
// that are replaced by another option.
type olderOptions struct {
	Console               string `codec:"console"`
	PivotRoot             string `codec:"pivot_root"`
	PrivateUsers          string `codec:"private_users"`
	PrivateUsersOwnership string `codec:"private_users_ownership"`
}

var olderSchema = schema.Options{
	"console":                 schema.Attr("console", "string"),
	"pivot_root":              schema.Attr("pivot_root", "string"),
	"private_users":           schema.Attr("private_users", "string"),
	"private_users_ownership": schema.Attr("private_users_ownership", "string"),
}

// validateOlder accepts only values of systemd-nspawn(1) that ask for what a task has
// anyway.
func (c TaskConfig) validateOlder() error {
	var found schema.Mistakes
	found.Add(
		schema.OneOf("console", c.Console, []string{"interactive", "read-only", "passive", "pipe"}),
		schema.OneOf("private_users_ownership", c.PrivateUsersOwnership, []string{"auto", "map", "chown", "off"}),
	)
	found.Unless(c.PivotRoot == "", "pivot_root: is not offered: give the directory of the image that is to be the root as image")
	switch c.PrivateUsers {
	case "", "pick", "yes", "true":
		found.Unless(c.PrivateUsers == "" || c.UserNamespacing, "private_users: %q differs from user_namespacing = false: set one of them", c.PrivateUsers)
	case "no", "false":
		found.Unless(!c.UserNamespacing, "private_users: %q is user_namespacing = false here: set that", c.PrivateUsers)
	default:
		found.Add(fmt.Errorf("private_users: %q is not offered: each container has a range of UIDs that the driver picks, as with \"pick\"", c.PrivateUsers))
	}
	return found.Err()
}
