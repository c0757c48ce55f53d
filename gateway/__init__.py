"""The gateway: asks on behalf of callers, and lets them through when no answer comes."""
