"""`prism doctor`: what is wrong with demonstrations, and with a policy that learned from them."""
