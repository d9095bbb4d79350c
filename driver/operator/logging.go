package operator

// JournaldLogging checks a job that sends its output to the host's journal. The journal
// has one limit for all, so new entries replace older ones of others.
func (p Policy) JournaldLogging() error {
	if !p.LogCollection {
		return nil // the operator sends all output to the journal
	}
	return refusal{
		what:   `logging.driver: "journald" lets the job push older entries out of the host's journal`,
		option: "allow_journald_logging",
	}.unless(p.rules.AllowJournaldLogging)
}
