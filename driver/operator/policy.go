package operator

import (
	"errors"
	"fmt"
	"path"
	"reflect"
	"strings"

	"nomad-driver-nspawn/driver/schema"
)

// Policy is what the operator allows the jobs of a namespace. Its methods answer
// with the error that the job's author reads, or with nil.
type Policy struct {
	rules policyOptions
	// LogCollection says that Nomad collects the output of tasks.
	LogCollection bool
}

// Policy returns what the operator allows the jobs of a Nomad namespace. What the
// block of the namespace does not set is as for all others.
func (c Config) Policy(namespace string) Policy {
	return Policy{rules: c.Namespaces[namespace].over(c.policyOptions), LogCollection: !c.DisableLogCollection}
}

// over returns the options, and those of another block where they are not set.
func (p policyOptions) over(other policyOptions) policyOptions {
	fields, others := reflect.ValueOf(&p).Elem(), reflect.ValueOf(other)
	for i := range fields.NumField() {
		if fields.Field(i).IsNil() {
			fields.Field(i).Set(others.Field(i))
		}
	}
	return p
}

// refusal is what is not allowed unless an option of the operator is true.
type refusal struct {
	what   string
	it     string // the word for it; "it" if empty
	option string
	or     string // another way out, if there is one
}

// unless returns the error if the operator has not allowed it.
func (r refusal) unless(allowed *bool) error {
	if isOn(allowed) {
		return nil
	}
	if r.it == "" {
		r.it = "it"
	}
	if r.or != "" {
		r.or = ", or " + r.or
	}
	return fmt.Errorf("%s; the operator has to allow %s with %s = true in the plugin's config%s", r.what, r.it, r.option, r.or)
}

func isOn(option *bool) bool { return option != nil && *option }

// listed shows a list of the operator.
func listed(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// checkPattern wants a pattern for matchesAny.
func checkPattern(at, pattern string) error {
	_, err := path.Match(pattern, "")
	return errors.Join(schema.NotEmpty(at, pattern), schema.Prefixed(at+": ", err))
}

// matchesAny reports whether one of the patterns of path.Match has the name.
func matchesAny(patterns []string, name string) bool {
	for _, pattern := range patterns {
		if matched, err := path.Match(pattern, name); err == nil && matched {
			return true
		}
	}
	return false
}
