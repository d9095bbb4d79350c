package operator

import (
	"errors"
	"fmt"
	"path"
	"reflect"
	"strings"

	"nomad-driver-nspawn/driver/schema"
)

// Policy is what the operator allows the jobs of a namespace. Its methods return nil, or
// the error that the job's author reads.
type Policy struct {
	rules policyOptions
	// LogCollection means that Nomad collects the output of tasks.
	LogCollection bool
}

// Policy returns what the operator allows the jobs of a Nomad namespace. Options that the
// block of the namespace does not set have the values for all namespaces.
func (c Config) Policy(namespace string) Policy {
	return Policy{rules: c.Namespaces[namespace].over(c.policyOptions), LogCollection: !c.DisableLogCollection}
}

// over returns the options, completed by those of another block.
func (p policyOptions) over(other policyOptions) policyOptions {
	fields, others := reflect.ValueOf(&p).Elem(), reflect.ValueOf(other)
	for i := range fields.NumField() {
		if fields.Field(i).IsNil() {
			fields.Field(i).Set(others.Field(i))
		}
	}
	return p
}

// refusal is a request that is refused unless an option of the operator is true.
type refusal struct {
	what   string
	it     string // the word for the request; "it" if empty
	option string
	or     string // an alternative, if there is one
}

// unless returns the error, or nil if the operator has allowed the request.
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

// listed formats a list of the operator.
func listed(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// checkPattern requires a pattern for matchesAny.
func checkPattern(at, pattern string) error {
	_, err := path.Match(pattern, "")
	return errors.Join(schema.NotEmpty(at, pattern), schema.Prefixed(at+": ", err))
}

// matchesAny reports whether a name matches one of the patterns (path.Match).
func matchesAny(patterns []string, name string) bool {
	for _, pattern := range patterns {
		if matched, err := path.Match(pattern, name); err == nil && matched {
			return true
		}
	}
	return false
}
