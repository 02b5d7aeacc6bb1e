"""What joins the sessions of one principal: a contract (who speaks, who is heard, who interrupts whom), and the bus between processes."""
